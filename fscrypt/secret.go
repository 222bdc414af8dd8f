package fscrypt

import (
	"crypto/rand"
	"errors"
	"fmt"
	"runtime"
	"sync"
)

// secretSize is the size of every secret that a Protector guards, in bytes.
const secretSize = 32

// Secret is 32 bytes of key material. It prints as "[secret]", refuses to be
// marshalled, and where the system allows lives in memory that is locked, left
// out of core dumps and emptied in forked children. Its methods are safe for
// concurrent use. The zero value is an erased Secret.
type Secret struct {
	mu  sync.Mutex
	mem *secretMemory // nil once erased
}

// secretMemory is freed by a cleanup too, when its Secret was forgotten.
type secretMemory struct {
	b    []byte
	free func()
}

// NewSecret copies 32 bytes into a Secret and erases b, which it does even
// when it fails.
func NewSecret(b []byte) (*Secret, error) {
	defer clear(b)
	if len(b) != secretSize {
		return nil, fmt.Errorf("fscrypt: a secret has %d bytes, not %d", secretSize, len(b))
	}
	s := newSecret()
	copy(s.mem.b, b)
	return s, nil
}

// randomSecret makes a Secret of the system's random bytes.
func randomSecret() *Secret {
	s := newSecret()
	rand.Read(s.mem.b)
	return s
}

func newSecret() *Secret {
	mem := &secretMemory{}
	mem.b, mem.free = lockedMemory(secretSize)
	s := &Secret{mem: mem}
	runtime.AddCleanup(s, func(m *secretMemory) { m.erase() }, mem)
	return s
}

func (m *secretMemory) erase() {
	if m.b != nil {
		clear(m.b)
		m.free()
		m.b = nil
	}
}

// Use calls f with the secret's bytes. f must not keep or change them.
func (s *Secret) Use(f func([]byte) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mem == nil || s.mem.b == nil {
		return fmt.Errorf("fscrypt: secret was erased: %w", ErrLocked)
	}
	return f(s.mem.b)
}

// Erase overwrites the secret. Use fails from then on. Erase may be called
// again, and on nil.
func (s *Secret) Erase() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mem != nil {
		s.mem.erase()
		s.mem = nil
	}
}

// String returns "[secret]".
func (s *Secret) String() string { return "[secret]" }

// GoString returns "[secret]".
func (s *Secret) GoString() string { return "[secret]" }

// Format prints "[secret]" for every verb.
func (s *Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, "[secret]") }

// MarshalText refuses, so that no encoder writes the secret.
func (s *Secret) MarshalText() ([]byte, error) {
	return nil, errors.New("fscrypt: a secret can't be marshalled")
}

// clone returns a copy.
func (s *Secret) clone() (*Secret, error) {
	c := newSecret()
	return c, s.Use(func(b []byte) error { copy(c.mem.b, b); return nil })
}

// xor sets s to s XOR other.
func (s *Secret) xor(other *Secret) error {
	return s.Use(func(a []byte) error {
		return other.Use(func(b []byte) error {
			for i := range a {
				a[i] ^= b[i]
			}
			return nil
		})
	})
}
