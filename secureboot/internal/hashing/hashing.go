// Package hashing hashes without allocating, for replays of long logs.
package hashing

import (
	"crypto"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
)

// Sum writes the hash of b to out, which has room for it, without allocating.
// It does nothing for a hash other than SHA-1, SHA-256, SHA-384 and SHA-512.
func Sum(h crypto.Hash, out, b []byte) {
	switch h {
	case crypto.SHA1:
		d := sha1.Sum(b)
		copy(out, d[:])
	case crypto.SHA256:
		d := sha256.Sum256(b)
		copy(out, d[:])
	case crypto.SHA384:
		d := sha512.Sum384(b)
		copy(out, d[:])
	case crypto.SHA512:
		d := sha512.Sum512(b)
		copy(out, d[:])
	}
}
