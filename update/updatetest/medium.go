package updatetest

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"syscall"

	"github.com/trusttree/trusttree/update"
)

// Medium is a disk in memory with a write cache: what was written since the
// last Sync is read back, but a power cut keeps any subset of it. It is an
// update.SlotFile, safe for concurrent use.
type Medium struct {
	name  string
	power *Power

	mu      sync.Mutex
	durable []byte
	pending []write
}

type write struct {
	off  int64
	data []byte
}

// NewMedium returns a medium of n bytes.
func NewMedium(name string, n int64, power *Power) *Medium {
	return &Medium{name: name, power: power, durable: make([]byte, n)}
}

// Size implements update.SlotFile.
func (m *Medium) Size() int64 { return int64(len(m.durable)) }

// WriteAt implements io.WriterAt.
func (m *Medium) WriteAt(p []byte, off int64) (int, error) {
	m.power.Step("write %s %d+%d", m.name, off, len(p))
	m.mu.Lock()
	defer m.mu.Unlock()
	if off < 0 || off+int64(len(p)) > int64(len(m.durable)) {
		return 0, fmt.Errorf("updatetest: write beyond %s: %w", m.name, syscall.ENOSPC)
	}
	m.pending = append(m.pending, write{off, slices.Clone(p)})
	return len(p), nil
}

// ReadAt implements io.ReaderAt.
func (m *Medium) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if off >= int64(len(m.durable)) {
		return 0, io.EOF
	}
	view := m.view(nil)
	n := copy(p, view[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// view is what the medium holds with those pending writes that keep lets
// through; nil means all.
func (m *Medium) view(keep func(i int) bool) []byte {
	if len(m.pending) == 0 {
		return m.durable
	}
	out := slices.Clone(m.durable)
	for i, w := range m.pending {
		if keep == nil || keep(i) {
			copy(out[w.off:], w.data)
		}
	}
	return out
}

// Sync implements update.SlotFile.
func (m *Medium) Sync() error {
	m.power.Step("sync %s", m.name)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.durable, m.pending = m.view(nil), nil
	return nil
}

// Close implements io.Closer; it syncs nothing.
func (m *Medium) Close() error { return nil }

// Unsynced returns how many writes a power cut may lose.
func (m *Medium) Unsynced() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.pending)
}

// After returns the first n bytes after a power cut that kept those unsynced
// writes that keep names. The medium is unchanged.
func (m *Medium) After(n int, keep func(i int) bool) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.view(keep)[:n])
}

// Lose makes the medium what After shows, with power from another supply.
func (m *Medium) Lose(keep func(i int) bool, power *Power) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.durable, m.pending, m.power = m.view(keep), nil, power
}

// Slots are media by "slot/part". Those that are missing are made with Size
// bytes.
type Slots struct {
	Media map[string]*Medium
	Size  int64
	Power *Power
}

// Open implements update.Slots.
func (s *Slots) Open(_ context.Context, slot update.Slot, part string) (update.SlotFile, error) {
	key := string(slot) + "/" + part
	if s.Media == nil {
		s.Media = map[string]*Medium{}
	}
	if s.Media[key] == nil {
		s.Media[key] = NewMedium(key, s.Size, s.Power)
	}
	return s.Media[key], nil
}
