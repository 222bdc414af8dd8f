// Package kernel speaks Linux' file system encryption (fscrypt, policy
// version 2) by its ioctls: on ext4, f2fs and ubifs, without a library or a
// command. It holds no policy of its own; package fscrypt decides.
//
// The kernel's encryption hides contents and names. It does not authenticate:
// a changed block reads as garbage, without an error.
package kernel

import (
	"crypto/hkdf"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
)

var (
	// ErrUnsupported: this kernel or file system has no encryption, or not
	// with these modes.
	ErrUnsupported = errors.New("kernel: file system encryption not available")
	// ErrOtherPolicy: the directory is encrypted under another policy.
	ErrOtherPolicy = errors.New("kernel: directory has another encryption policy")
	// ErrNoPolicy: the directory is not encrypted.
	ErrNoPolicy = errors.New("kernel: directory is not encrypted")
)

// KeySize is the size of the keys used here, in bytes: enough for every mode.
const KeySize = 64

// Identifier names a key: the kernel derives it from the key, so that a wrong
// key has another name.
type Identifier [16]byte

// String returns 32 hexadecimal digits.
func (i Identifier) String() string { return hex.EncodeToString(i[:]) }

// KeyIdentifier computes what the kernel calls a key.
func KeyIdentifier(key []byte) (id Identifier, err error) {
	b, err := hkdf.Key(sha512.New, key, nil, "fscrypt\x00\x01", len(id))
	copy(id[:], b)
	return id, err
}

// Mode is an algorithm, by the kernel's number.
type Mode uint8

// Modes of contents and of names.
const (
	AES256XTS   Mode = 1 // contents
	AES256CTS   Mode = 4 // names
	Adiantum    Mode = 9 // both, for processors without AES instructions
	AES256HCTR2 Mode = 10
)

// String returns the kernel documentation's name.
func (m Mode) String() string {
	switch m {
	case AES256XTS:
		return "AES-256-XTS"
	case AES256CTS:
		return "AES-256-CTS-CBC"
	case Adiantum:
		return "Adiantum"
	case AES256HCTR2:
		return "AES-256-HCTR2"
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// Policy is how a directory is encrypted. Names are padded to 32 bytes.
type Policy struct {
	Contents   Mode       `json:"contents"`
	Filenames  Mode       `json:"filenames"`
	Identifier Identifier `json:"-"`
}

// KeyState is what the kernel holds of a key.
type KeyState int

// States of a key.
const (
	Absent           KeyState = 1 // also every cached plaintext is gone
	Present          KeyState = 2
	IncompletelyGone KeyState = 3 // files that are open keep their keys and can still be read
	flagBusy                  = 1
	flagOtherUsers            = 2
)

// Removal is what came of RemoveKey.
type Removal struct {
	// Busy: open files keep the key in use. They read on.
	Busy bool
	// OtherUsers: other users added the key too, and keep it.
	OtherUsers bool
}
