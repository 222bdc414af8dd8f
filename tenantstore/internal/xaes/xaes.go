// Package xaes is XAES-256-GCM (C2SP, c2sp.org/XAES-256-GCM): AES-256-GCM with
// a 192-bit nonce, so that random nonces never run out. Each message is sealed
// by AES-256-GCM under a key that CMAC (NIST SP 800-108r1) derives from the
// first half of the nonce. In FIPS 140-only mode Seal overwrites the second half
// of the nonce that it is given, so callers store the nonce after sealing.
package xaes

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"errors"
)

// Sizes in bytes.
const (
	KeySize   = 32
	NonceSize = 24
	Overhead  = 16
)

type xaes struct {
	c  cipher.Block
	k1 [aes.BlockSize]byte
}

// New returns XAES-256-GCM under a 32-byte key. It is safe for concurrent use.
func New(key []byte) (Deriver, error) {
	if len(key) != KeySize {
		return nil, errors.New("xaes: key is not 32 bytes")
	}
	x := new(xaes)
	var err error
	if x.c, err = aes.NewCipher(key); err != nil {
		return nil, err
	}
	x.c.Encrypt(x.k1[:], x.k1[:])
	var msb byte
	for i := len(x.k1) - 1; i >= 0; i-- {
		msb, x.k1[i] = x.k1[i]>>7, x.k1[i]<<1|msb
	}
	x.k1[len(x.k1)-1] ^= msb * 0x87
	return x, nil
}

func (*xaes) NonceSize() int { return NonceSize }
func (*xaes) Overhead() int  { return Overhead }

// Deriver is an AEAD of New, of which the derived key of a nonce's first half
// can be had.
type Deriver interface {
	cipher.AEAD
	// Derive returns AES-256-GCM under the key that belongs to the first 12 bytes
	// of a nonce; its own nonces are the last 12.
	Derive(half []byte) (cipher.AEAD, error)
}

// HalfSize is that of half a nonce.
const HalfSize = NonceSize / 2

func (x *xaes) Derive(half []byte) (cipher.AEAD, error) {
	if len(half) != HalfSize {
		return nil, errors.New("xaes: half a nonce is not 12 bytes")
	}
	return x.derive(half)
}

func (x *xaes) derive(nonce []byte) (cipher.AEAD, error) {
	var k [2 * aes.BlockSize]byte
	defer clear(k[:])
	for i := range 2 {
		b := k[i*aes.BlockSize:][:aes.BlockSize]
		copy(b, []byte{0, byte(i + 1), 'X', 0})
		copy(b[4:], nonce[:12])
		for j := range b {
			b[j] ^= x.k1[j]
		}
		x.c.Encrypt(b, b)
	}
	c, err := aes.NewCipher(k[:])
	if err != nil {
		return nil, err
	}
	if fips140.Enforced() {
		a, err := cipher.NewGCMWithRandomNonce(c)
		return drawn{a}, err
	}
	return cipher.NewGCM(c)
}

// drawn is AES-256-GCM in FIPS 140-only mode, in which Go's module draws the
// nonces of what it seals: Seal overwrites the nonce that it is given. The form
// is the same, 2^32 messages a derived key are the same limit.
type drawn struct{ a cipher.AEAD }

func (drawn) NonceSize() int { return HalfSize }
func (drawn) Overhead() int  { return Overhead }

func (d drawn) Seal(dst, nonce, plaintext, additionalData []byte) []byte {
	sealed := d.a.Seal(nil, nil, plaintext, additionalData)
	copy(nonce, sealed[:HalfSize])
	return append(dst, sealed[HalfSize:]...)
}

func (d drawn) Open(dst, nonce, ciphertext, additionalData []byte) ([]byte, error) {
	return d.a.Open(dst, nil, append(append(make([]byte, 0, len(nonce)+len(ciphertext)), nonce...), ciphertext...), additionalData)
}

func (x *xaes) Seal(dst, nonce, plaintext, additionalData []byte) []byte {
	if len(nonce) != NonceSize {
		panic("xaes: nonce is not 24 bytes")
	}
	a, err := x.derive(nonce)
	if err != nil {
		panic(err) // AES with a 32-byte key does not fail
	}
	return a.Seal(dst, nonce[12:], plaintext, additionalData)
}

func (x *xaes) Open(dst, nonce, ciphertext, additionalData []byte) ([]byte, error) {
	if len(nonce) != NonceSize {
		return nil, errors.New("xaes: nonce is not 24 bytes")
	}
	a, err := x.derive(nonce)
	if err != nil {
		return nil, err
	}
	return a.Open(dst, nonce[12:], ciphertext, additionalData)
}
