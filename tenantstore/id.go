package tenantstore

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
)

// ID is a tenant's name for people: 1 to 63 characters of a-z, 0-9 and '-',
// with a letter or digit at both ends. It is never part of a path or a key;
// those use the UID. The ID of a destroyed tenant stays taken.
type ID string

// ParseID returns the ID that s spells, or ErrInvalid.
func ParseID(s string) (ID, error) {
	alnum := func(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }
	ok := len(s) >= 1 && len(s) <= 63
	for i := 0; ok && i < len(s); i++ {
		ok = alnum(s[i]) || s[i] == '-' && i > 0 && i < len(s)-1
	}
	if !ok {
		return "", fmt.Errorf("tenantstore: tenant ID %q: %w: want 1 to 63 of a-z, 0-9, '-', with no '-' at the ends", clip(s), ErrInvalid)
	}
	return ID(s), nil
}

// UID is a tenant's identity: random, never used again. Paths, database names,
// key names, caches and the associated data of every record are made of it.
type UID [16]byte

// String returns the UID in hex.
func (u UID) String() string { return hex.EncodeToString(u[:]) }

// MarshalText implements encoding.TextMarshaler.
func (u UID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (u *UID) UnmarshalText(b []byte) error {
	if len(b) != 2*len(u) {
		return fmt.Errorf("tenantstore: UID %q: %w", clip(string(b)), ErrInvalid)
	}
	if _, err := hex.Decode(u[:], b); err != nil {
		return fmt.Errorf("tenantstore: UID %q: %w", clip(string(b)), ErrInvalid)
	}
	return nil
}

func newUID() (u UID) {
	_, _ = rand.Read(u[:]) // never fails (crypto/rand)
	return u
}

// checkName accepts the names of collections. Those of the store itself begin
// with '~', so no caller can name them.
func checkName(s string) error {
	ok := len(s) >= 1 && len(s) <= 128
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		ok = 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.'
	}
	if !ok {
		return fmt.Errorf("collection %q: %w: want 1 to 128 of a-z, A-Z, 0-9, '-', '_', '.'", clip(s), ErrInvalid)
	}
	return nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
