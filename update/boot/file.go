// Package boot has the boot loaders and slots that package update installs
// with. Start with NewFile for tests and for boards whose loader reads a file,
// and with FileSlots for slots that are files or block devices.
package boot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/trusttree/trusttree/internal/durable"
	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/internal/lint"
)

// File keeps the choice of slot in one JSON file, for boot loaders that read
// it and for tests, which play the loader with Boot. It is safe for concurrent
// use.
type File struct {
	path string
	mu   sync.Mutex
}

type fileState struct {
	Version int                  `json:"version"`
	Running update.Slot          `json:"running"`
	Default update.Slot          `json:"default"`
	Slots   map[string]fileEntry `json:"slots"`
}

type fileEntry struct {
	Good  bool `json:"good"`
	Tries int  `json:"tries"`
}

// NewFile opens the state at path. Where there is none, it makes one in which
// slot running runs and is good, and slot other is not bootable.
func NewFile(path string, running, other update.Slot) (*File, error) {
	f := &File{path: path}
	if running == "" || other == "" || running == other {
		return nil, fmt.Errorf("boot: slots %q and %q", running, other)
	}
	_, err := f.load()
	if errors.Is(err, fs.ErrNotExist) {
		err = f.save(&fileState{Running: running, Default: running,
			Slots: map[string]fileEntry{string(running): {Good: true}, string(other): {}}})
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (f *File) load() (*fileState, error) {
	data, err := readFile(f.path)
	if err != nil {
		return nil, fmt.Errorf("boot: %w", err)
	}
	var s fileState
	if err := lint.Strict(data, 64<<10, &s); err != nil {
		return nil, fmt.Errorf("boot: %s: %w", f.path, err)
	}
	if s.Version != 1 || len(s.Slots) != 2 {
		return nil, fmt.Errorf("boot: %s: version %d with %d slots", f.path, s.Version, len(s.Slots))
	}
	return &s, nil
}

func (f *File) save(s *fileState) error {
	s.Version = 1
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return durable.WriteFile(f.path, data, 0o600)
}

func (f *File) edit(ctx context.Context, slot update.Slot, change func(*fileState, *fileEntry)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.load()
	if err != nil {
		return err
	}
	e, ok := s.Slots[string(slot)]
	if !ok {
		return fmt.Errorf("boot: no slot %q", slot)
	}
	change(s, &e)
	s.Slots[string(slot)] = e
	return f.save(s)
}

// Slots implements update.BootControl.
func (f *File) Slots(ctx context.Context) ([]update.SlotStatus, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.load()
	if err != nil {
		return nil, err
	}
	var out []update.SlotStatus
	for name, e := range s.Slots {
		out = append(out, update.SlotStatus{Slot: update.Slot(name), Running: s.Running == update.Slot(name), Good: e.Good, Tries: e.Tries})
	}
	return out, nil
}

// Invalidate implements update.BootControl.
func (f *File) Invalidate(ctx context.Context, slot update.Slot) error {
	return f.edit(ctx, slot, func(s *fileState, e *fileEntry) {
		*e = fileEntry{}
		for name, o := range s.Slots {
			if update.Slot(name) != slot && o.Good {
				s.Default = update.Slot(name)
			}
		}
	})
}

// Arm implements update.BootControl.
func (f *File) Arm(ctx context.Context, slot update.Slot, tries int) error {
	return f.edit(ctx, slot, func(_ *fileState, e *fileEntry) { e.Good, e.Tries = false, tries })
}

// MarkGood implements update.BootControl.
func (f *File) MarkGood(ctx context.Context, slot update.Slot) error {
	return f.edit(ctx, slot, func(s *fileState, e *fileEntry) {
		e.Good, e.Tries = true, 0
		s.Default = slot
	})
}

// Boot does what the boot loader does: it takes a slot on trial that has tries
// left, counts the try, and otherwise the default slot. It returns the slot
// that runs from then on.
func (f *File) Boot(ctx context.Context) (update.Slot, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.load()
	if err != nil {
		return "", err
	}
	s.Running = ""
	for name, e := range s.Slots {
		if e.Tries > 0 && !e.Good {
			e.Tries--
			s.Slots[name] = e
			s.Running = update.Slot(name)
		}
	}
	if s.Running == "" {
		if !s.Slots[string(s.Default)].Good {
			return "", fmt.Errorf("boot: %s: no slot can be booted", f.path)
		}
		s.Running = s.Default
	}
	return s.Running, f.save(s)
}
