package tufmeta

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/trusttree/trusttree/update/internal/lint"
)

// Bounds of what one metadata file may hold.
const (
	maxSignatures  = 64
	maxKeysPerRole = 64
	maxDelegations = 4096
)

// ErrMalformed is the class of everything that is wrong with a metadata file
// before its signatures are looked at.
var ErrMalformed = errors.New("malformed metadata")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// Guard runs f, which calls go-tuf with data of a peer, and turns a panic of
// the decoder into an error.
func Guard(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = malformed("decoder failed: %v", r)
		}
	}()
	return f()
}

// Decode decodes and checks a metadata file of role type T. It checks no
// signature.
func Decode[T metadata.Roles](data []byte) (m *metadata.Metadata[T], err error) {
	if err := lint.Check(data); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	err = Guard(func() error {
		m, err = (&metadata.Metadata[T]{}).FromBytes(data)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		if len(m.Signatures) > maxSignatures {
			return malformed("%d signatures, limit %d", len(m.Signatures), maxSignatures)
		}
		switch s := any(&m.Signed).(type) {
		case *metadata.RootType:
			return checkRoot(s)
		case *metadata.TimestampType:
			return checkMeta(s.SpecVersion, s.Version, s.Meta, "snapshot.json")
		case *metadata.SnapshotType:
			return checkMeta(s.SpecVersion, s.Version, s.Meta, "targets.json")
		case *metadata.TargetsType:
			return checkTargets(s)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

func checkVersion(spec string, version int64) error {
	if major, _, _ := strings.Cut(spec, "."); major != "1" {
		return malformed("specification version %.20q", spec)
	}
	if version < 1 || version >= lint.MaxInteger {
		return malformed("version %d", version)
	}
	return nil
}

func checkMeta(spec string, version int64, meta map[string]*metadata.MetaFiles, need string) error {
	if err := checkVersion(spec, version); err != nil {
		return err
	}
	if meta[need] == nil {
		return malformed("no entry for %s", need)
	}
	for name, f := range meta {
		if f == nil || f.Version < 1 || f.Version >= lint.MaxInteger || f.Length < 0 {
			return malformed("entry for %.60q", name)
		}
	}
	return nil
}

// checkKeys checks the keys that a role uses: others may be of kinds that are
// not known here.
func checkKeys(keys map[string]*metadata.Key, ids []string, threshold int) error {
	if threshold < 1 || threshold > maxKeysPerRole {
		return malformed("threshold %d", threshold)
	}
	if len(ids) > maxKeysPerRole {
		return malformed("%d keys, limit %d", len(ids), maxKeysPerRole)
	}
	for i, id := range ids {
		if slices.Contains(ids[:i], id) {
			return malformed("key ID %.80q twice in a role", id)
		}
		k := keys[id]
		if k == nil {
			return malformed("role names key %.80q that is not there", id)
		}
		if err := checkKey(k); err != nil {
			return malformed("key %.80q: %v", id, err)
		}
	}
	return nil
}

func checkKey(k *metadata.Key) error {
	if k.Type == metadata.KeyTypeEd25519 && len(k.Value.PublicKey) != 64 {
		return fmt.Errorf("%w: ed25519 of %d hex digits", ErrKey, len(k.Value.PublicKey))
	}
	pub, err := k.ToPublicKey()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrKey, err)
	}
	switch p := pub.(type) {
	case *rsa.PublicKey:
		if p.Size() < 256 || p.Size() > 1024 {
			return fmt.Errorf("%w: RSA of %d bits", ErrKey, 8*p.Size())
		}
	case *ecdsa.PublicKey:
		if bits := p.Curve.Params().BitSize; bits != 256 && bits != 384 {
			return fmt.Errorf("%w: ECDSA of %d bits", ErrKey, bits)
		}
	}
	return nil
}

func checkRoot(s *metadata.RootType) error {
	if err := checkVersion(s.SpecVersion, s.Version); err != nil {
		return err
	}
	if len(s.Roles) != len(metadata.TOP_LEVEL_ROLE_NAMES) {
		return malformed("root has %d roles", len(s.Roles))
	}
	for _, name := range metadata.TOP_LEVEL_ROLE_NAMES {
		r := s.Roles[name]
		if r == nil {
			return malformed("root has no role %s", name)
		}
		if err := checkKeys(s.Keys, r.KeyIDs, r.Threshold); err != nil {
			return fmt.Errorf("role %s: %w", name, err)
		}
	}
	return nil
}

func checkTargets(s *metadata.TargetsType) error {
	if err := checkVersion(s.SpecVersion, s.Version); err != nil {
		return err
	}
	for name, t := range s.Targets {
		if t == nil || t.Length < 0 || len(t.Hashes) == 0 || len(t.Hashes) > 8 {
			return malformed("target %.60q", name)
		}
	}
	d := s.Delegations
	if d == nil {
		return nil
	}
	if len(d.Roles) > maxDelegations {
		return malformed("%d delegations, limit %d", len(d.Roles), maxDelegations)
	}
	if d.Roles != nil && d.SuccinctRoles != nil {
		return malformed("both roles and succinct_roles")
	}
	for i, r := range d.Roles {
		if err := CheckRoleName(r.Name); err != nil {
			return err
		}
		if slices.ContainsFunc(d.Roles[:i], func(o metadata.DelegatedRole) bool { return o.Name == r.Name }) {
			return malformed("delegated role %.60q twice", r.Name)
		}
		if err := checkKeys(d.Keys, r.KeyIDs, r.Threshold); err != nil {
			return fmt.Errorf("delegated role %.60q: %w", r.Name, err)
		}
		if len(r.Paths) > 0 && len(r.PathHashPrefixes) > 0 {
			return malformed("delegated role %.60q has paths and path_hash_prefixes", r.Name)
		}
	}
	if sr := d.SuccinctRoles; sr != nil {
		if err := CheckRoleName(sr.NamePrefix); err != nil {
			return err
		}
		if sr.BitLength < 1 || sr.BitLength > 32 {
			return malformed("bit_length %d", sr.BitLength)
		}
		return checkKeys(d.Keys, sr.KeyIDs, sr.Threshold)
	}
	return nil
}

// CheckRoleName refuses names that a delegated role may not have.
func CheckRoleName(name string) error {
	if name == "" || len(name) > 200 || strings.ContainsRune(name, 0) {
		return malformed("delegated role called %.60q", name)
	}
	if slices.Contains(metadata.TOP_LEVEL_ROLE_NAMES[:], strings.ToLower(name)) {
		return malformed("delegated role called %q, which is a top-level role", name)
	}
	return nil
}
