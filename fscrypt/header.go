package fscrypt

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/trusttree/trusttree/fscrypt/internal/disk"
)

// Limits of a header that is read before anything authenticates it.
const (
	headerVersion = 1
	maxHeader     = 256 << 10 // bytes
	maxSlots      = 16
	maxLabel      = 64 // bytes
)

// header is the file that leads to the volume key: two copies of strict JSON.
// Its last field is encrypted under the volume key with all others as
// additional data, so that whoever can open a slot also learns whether the
// header was changed.
type header struct {
	Version    int        `json:"version"`
	UUID       string     `json:"uuid"`
	Label      string     `json:"label"`
	Mode       string     `json:"mode"`
	Algorithms algorithms `json:"algorithms"`
	Generation uint64     `json:"generation"`
	Epoch      uint64     `json:"epoch"` // number of the volume key
	Slots      []Slot     `json:"slots"`
	Private    []byte     `json:"private,omitempty"`
}

type algorithms struct {
	KDF    string `json:"kdf"`
	Object string `json:"object"`
	Log    string `json:"log"`
}

var algorithmsV1 = algorithms{KDF: "hkdf-sha512", Object: "age-v1", Log: "xchacha20-poly1305"}

// private is the encrypted part of the header.
type private struct {
	Stable  []byte       `json:"stable"` // 32 bytes that outlive the volume key: latch, counter's auth, first kernel key
	Old     []oldKey     `json:"old,omitempty"`
	Counter *counterInfo `json:"counter,omitempty"`
	Kernel  *kernelInfo  `json:"kernel,omitempty"`
}

// oldKey is a volume key that files not yet rotated still need.
type oldKey struct {
	Epoch uint64 `json:"epoch"`
	Key   []byte `json:"key"`
}

func (p *private) erase() {
	clear(p.Stable)
	if p.Kernel != nil {
		clear(p.Kernel.Key)
	}
	for _, o := range p.Old {
		clear(o.Key)
	}
}

// derive makes a key for one purpose. Purposes are listed where it is called.
func derive(s *Secret, size int, salt []byte, info string) (key []byte, err error) {
	err = s.Use(func(b []byte) error {
		key, err = hkdf.Key(sha512.New, b, salt, "trusttree fscrypt v1 "+info, size)
		return err
	})
	return key, err
}

func newHeader(label, mode string) (*header, error) {
	if len(label) == 0 || len(label) > maxLabel {
		return nil, fmt.Errorf("label must have 1 to %d bytes", maxLabel)
	}
	var id [16]byte
	rand.Read(id[:])
	return &header{Version: headerVersion, UUID: hex.EncodeToString(id[:]), Label: label, Mode: mode, Algorithms: algorithmsV1, Epoch: 1}, nil
}

// public is what the private part authenticates.
func (h *header) public() ([]byte, error) {
	c := *h
	c.Private = nil
	return json.Marshal(c)
}

func (h *header) aead(vk *Secret) ([]byte, error) {
	return derive(vk, chacha20poly1305.KeySize, []byte(h.UUID), "header")
}

// seal encrypts p into the header and so authenticates the rest.
func (h *header) seal(vk *Secret, p *private) error {
	key, err := h.aead(vk)
	if err != nil {
		return err
	}
	defer clear(key)
	ad, err := h.public()
	if err != nil {
		return err
	}
	plain, err := json.Marshal(p)
	if err != nil {
		return err
	}
	defer clear(plain)
	a, err := chacha20poly1305.NewX(key)
	if err != nil {
		return err
	}
	nonce := make([]byte, a.NonceSize())
	rand.Read(nonce)
	h.Private = a.Seal(nonce, nonce, plain, ad)
	return nil
}

// open authenticates the header. A key that does not is not this volume's.
func (h *header) open(vk *Secret) (*private, error) {
	key, err := h.aead(vk)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	ad, err := h.public()
	if err != nil {
		return nil, err
	}
	a, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, err
	}
	if len(h.Private) < a.NonceSize() {
		return nil, fmt.Errorf("header without its private part: %w", ErrTampered)
	}
	plain, err := a.Open(nil, h.Private[:a.NonceSize()], h.Private[a.NonceSize():], ad)
	if err != nil {
		return nil, fmt.Errorf("the key from the slot does not authenticate the header: another volume's slot, or a changed header: %w", ErrWrongVolume)
	}
	defer clear(plain)
	p := new(private)
	if err := strictJSON(plain, p); err != nil {
		return nil, err
	}
	if len(p.Stable) != secretSize {
		return nil, fmt.Errorf("header: %w", ErrTampered)
	}
	return p, p.Kernel.check()
}

// parseHeader reads a header that nothing has authenticated yet.
func parseHeader(b []byte) (*header, error) {
	h := new(header)
	if len(b) > maxHeader {
		return nil, fmt.Errorf("header of %d bytes, limit %d", len(b), maxHeader)
	}
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if v.Version != headerVersion {
		return nil, fmt.Errorf("header version %d, this program reads %d: %w", v.Version, headerVersion, ErrUnsupported)
	}
	if err := strictJSON(b, h); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	id, err := hex.DecodeString(h.UUID)
	switch {
	case err != nil || len(id) != 16:
		return nil, errors.New("header: bad uuid")
	case h.Algorithms != algorithmsV1:
		return nil, fmt.Errorf("header: algorithms %+v: %w", h.Algorithms, ErrUnsupported)
	case h.Mode != modePortable && h.Mode != modeKernel:
		return nil, fmt.Errorf("header: mode %.20q: %w", h.Mode, ErrUnsupported)
	case len(h.Slots) == 0 || len(h.Slots) > maxSlots:
		return nil, fmt.Errorf("header: %d slots, want 1 to %d", len(h.Slots), maxSlots)
	case len(h.Label) == 0 || len(h.Label) > maxLabel:
		return nil, errors.New("header: bad label")
	}
	for _, s := range h.Slots {
		if s.ID == "" || len(s.ID) > 64 || s.Type == "" || len(s.Type) > 256 {
			return nil, errors.New("header: bad slot")
		}
	}
	return h, nil
}

var headerNames = [2]string{"header.a", "header.b"}

// writeHeader replaces both copies, one after the other.
func writeHeader(d disk.FS, h *header) error {
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if len(b) > maxHeader {
		return fmt.Errorf("header of %d bytes, limit %d", len(b), maxHeader)
	}
	for _, name := range headerNames {
		if err := disk.WriteFile(d, name, b); err != nil {
			return err
		}
	}
	return nil
}

// readHeaders returns the copies that parse, the newest first. Copies that are
// equal count once; differ says that not both are there and equal.
func readHeaders(d disk.FS) (hs []*header, differ bool, err error) {
	var errs []error
	var first []byte
	for _, name := range headerNames {
		b, err := disk.ReadFile(d, name, maxHeader)
		if errors.Is(err, disk.ErrTooLarge) {
			err = fmt.Errorf("%w: %w", ErrTampered, err)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		h, err := parseHeader(b)
		if err != nil {
			if !errors.Is(err, ErrUnsupported) {
				err = fmt.Errorf("%w: %w", ErrTampered, err)
			}
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			continue
		}
		if first != nil && bytes.Equal(first, b) {
			continue
		}
		first = b
		if len(hs) == 1 && h.Generation > hs[0].Generation {
			hs = []*header{h, hs[0]}
			continue
		}
		hs = append(hs, h)
	}
	if len(hs) == 0 {
		return nil, false, fmt.Errorf("no header can be read: %w", errors.Join(errs...))
	}
	return hs, len(errs) > 0 || len(hs) > 1, nil
}

// strictJSON decodes one JSON value and refuses unknown fields and anything
// behind it.
func strictJSON(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() || len(bytes.TrimSpace(b[d.InputOffset():])) > 0 {
		return errors.New("data behind the JSON value")
	}
	return nil
}
