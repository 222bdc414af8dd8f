package fscrypt

import (
	"bytes"
	"context"
	"encoding/json"
	"io"

	"filippo.io/age"

	"github.com/trusttree/trusttree/fscrypt/internal/disk"
)

// CreateOn and OpenOn are Create and Open on a file system of the test's.
func CreateOn(ctx context.Context, d disk.FS, cfg Config, ps ...Protector) (*Volume, error) {
	return createOn(ctx, "mem", d, cfg, ps)
}

func OpenOn(ctx context.Context, d disk.FS, cfg Config, ps ...Protector) (*Volume, error) {
	return openOn(ctx, "mem", d, cfg, ps)
}

// OpenIn is Open with another file system in the place of dir's .fscrypt.
func OpenIn(ctx context.Context, dir string, d disk.FS, cfg Config, ps ...Protector) (*Volume, error) {
	return openOn(ctx, dir, d, cfg, ps)
}

// Abandon lets go of a volume as a process does that is killed.
func Abandon(v *Volume) {
	_ = v.abandon()
	_ = v.disk.Close()
}

// ParseHeader reads a header that nothing authenticates.
func ParseHeader(b []byte) error {
	_, err := parseHeader(b)
	return err
}

// ReopenHeader opens a header with the volume key and encodes it again; private
// is its encrypted part.
func ReopenHeader(b, key []byte) (again, private []byte, err error) {
	h, err := parseHeader(b)
	if err != nil {
		return nil, nil, err
	}
	vk, err := NewSecret(key)
	if err != nil {
		return nil, nil, err
	}
	defer vk.Erase()
	p, err := h.open(vk)
	if err != nil {
		return nil, nil, err
	}
	if private, err = json.Marshal(p); err != nil {
		return nil, nil, err
	}
	again, err = json.Marshal(h)
	return again, private, err
}

// GoldenHeader seals a header's public part anew under a key, with a private
// part that has every field.
func GoldenHeader(b, key []byte) ([]byte, error) {
	h, err := parseHeader(b)
	if err != nil {
		return nil, err
	}
	vk, err := NewSecret(key)
	if err != nil {
		return nil, err
	}
	defer vk.Erase()
	err = h.seal(vk, &private{
		Stable: make([]byte, secretSize), Old: []oldKey{{Epoch: 1, Key: make([]byte, secretSize)}},
		Counter: &counterInfo{Index: 0x01800112, Name: "000b", Parent: "000b", Base: 1, Start: 2},
		Kernel:  &kernelInfo{Contents: 1, Filenames: 4, Key: make([]byte, secretSize), Old: make([]byte, 16)},
	})
	if err != nil {
		return nil, err
	}
	return json.Marshal(h)
}

// ReadThroughCache reads an age file the way that a File does.
func ReadThroughCache(file []byte, ids ...age.Identity) ([]byte, error) {
	r, size, err := age.DecryptReaderAt(bytes.NewReader(file), int64(len(file)), ids...)
	if err != nil {
		return nil, err
	}
	v := &Volume{cache: newChunkCache(0)}
	f := &File{v: v, parts: []partReader{{part: part{ID: "x", Size: size}, plain: r}}}
	return io.ReadAll(f)
}

// WithoutLatch is a binding whose latch nobody closes, so that a benchmark can
// unseal again and again.
func WithoutLatch(b Binding) Binding {
	b.notes = new(notes)
	return b
}

// RandomSecret and Erasing are what the memory scan needs.
func RandomSecret() *Secret { return randomSecret() }

func Erasing(f func()) { erasing(f) }

// SetMaxLogged makes packs of small objects earlier than usual.
func SetMaxLogged(v *Volume, n int) { v.maxLogged = n }
