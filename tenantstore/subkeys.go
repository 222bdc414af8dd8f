package tenantstore

import (
	"crypto/cipher"
	"crypto/rand"
	"sync"

	"github.com/trusttree/trusttree/tenantstore/internal/xaes"
)

// XAES-256-GCM derives an AES-256-GCM key from the first half of each nonce,
// which costs more than sealing a small record. So a run of records shares a
// random first half, and with it the derived key: the second half starts at
// random and is counted up, so that no nonce comes twice in a run; two runs
// meet only if 24 random bytes do. A derived key seals runLength records, far
// below the 2^32 of NIST SP 800-38D. The stored form is that of C2SP, nonce by
// nonce, and any reader of it opens it.
const (
	runLength  = 1024
	maxSubkeys = 64 // remembered for reading, about 0.6 KiB each
)

type half [xaes.HalfSize]byte

type subkeys struct {
	x xaes.Deriver

	writing sync.Mutex
	run     cipher.AEAD
	nonce   [xaes.NonceSize]byte
	left    int

	reading sync.Mutex
	known   map[half]cipher.AEAD
	order   [maxSubkeys]half
	next    int
}

func newSubkeys(key []byte) (*subkeys, error) {
	x, err := xaes.New(key)
	return &subkeys{x: x}, err
}

// seal chooses a nonce, writes it to nonce, and seals plain in place; plain has
// the capacity for the tag.
func (s *subkeys) seal(nonce, plain, aad []byte) {
	a := s.pick(nonce)
	a.Seal(plain[:0], nonce[xaes.HalfSize:], plain, aad)
}

func (s *subkeys) pick(nonce []byte) cipher.AEAD {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.left == 0 {
		_, _ = rand.Read(s.nonce[:])
		a, err := s.x.Derive(s.nonce[:xaes.HalfSize])
		if err != nil {
			panic(err) // AES with a 32-byte key does not fail
		}
		s.run, s.left = a, runLength
	}
	s.left--
	for i := xaes.NonceSize - 1; i >= xaes.HalfSize; i-- {
		if s.nonce[i]++; s.nonce[i] != 0 {
			break
		}
	}
	copy(nonce, s.nonce[:])
	return s.run
}

// open opens body in place.
func (s *subkeys) open(nonce, body, aad []byte) ([]byte, error) {
	a, err := s.find(half(nonce))
	if err != nil {
		return nil, err
	}
	return a.Open(body[:0], nonce[xaes.HalfSize:], body, aad)
}

// find returns the derived key of a half. It is remembered before anything was
// opened with it: what a forger can fill is a cache.
func (s *subkeys) find(h half) (cipher.AEAD, error) {
	s.reading.Lock()
	a, ok := s.known[h]
	s.reading.Unlock()
	if ok {
		return a, nil
	}
	return s.derive(h)
}

func (s *subkeys) derive(h half) (cipher.AEAD, error) {
	a, err := s.x.Derive(h[:])
	if err != nil {
		return nil, err
	}
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.known == nil {
		s.known = make(map[half]cipher.AEAD)
	}
	if _, ok := s.known[h]; ok { // another reader was faster
		return a, nil
	}
	if len(s.known) >= maxSubkeys {
		delete(s.known, s.order[s.next])
	}
	s.known[h], s.order[s.next] = a, h
	s.next = (s.next + 1) % maxSubkeys
	return a, nil
}
