package keys

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/internal/durable"
	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/internal/strict"
	"github.com/trusttree/trusttree/tenantstore/internal/xaes"
)

const (
	maxFile    = 16 << 10
	masterName = "master.json"
	lockName   = "lock"
)

// Dir is a tenantstore.KeyProvider that keeps each tenant's key in a file of
// its own, sealed by XAES-256-GCM under a master key. Destroying a key
// overwrites and removes its file and leaves a mark. On flash media old sectors
// may survive until they are trimmed; what they hold is sealed under the master
// key. It is safe for concurrent use, in several processes too, where the file
// system has locks that reach all of them (flock: one machine, or NFS version
// 4); instances of a service on machines that share no such file system need a
// transit engine, or tenants and a directory for each instance.
type Dir struct {
	dir string
	sum [sha256.Size]byte // of master.json

	mu     sync.RWMutex
	master cipher.AEAD // nil after Close
}

// masterFile is master.json. Version 1.
type masterFile struct {
	Version int    `json:"version"`
	Kind    string `json:"kind"`              // "file" or "tpm"
	Key     []byte `json:"key,omitempty"`     // kind file: the master key
	Public  []byte `json:"public,omitempty"`  // kind tpm: TPM2B_PUBLIC of the sealed object
	Private []byte `json:"private,omitempty"` // kind tpm: TPM2B_PRIVATE
}

// keyFile is a tenant's KEYID.json. Version 1.
type keyFile struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	Sealed  []byte `json:"sealed,omitempty"` // nonce and sealed key
	Gone    bool   `json:"gone,omitempty"`   // the key was destroyed
}

// OpenDir opens or makes the directory. With a TPM the master key is made and
// sealed by it (under the storage root key, through sessions that hide it from
// the bus); with nil it is the file master.json, to be kept apart from backups
// of the data. A directory that was made one way does not open the other.
func OpenDir(ctx context.Context, dir string, t transport.TPM) (*Dir, error) {
	d, err := openDir(ctx, dir, t)
	if err != nil {
		return nil, fmt.Errorf("keys: open %s: %w", dir, err)
	}
	return d, nil
}

func openDir(ctx context.Context, dir string, t transport.TPM) (*Dir, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	unlock, err := lockDir(ctx, dir, true) // two processes must not make two master keys
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := durable.Clean(dir); err != nil {
		return nil, err
	}
	name := filepath.Join(dir, masterName)
	var m masterFile
	sum, err := readJSON(name, &m)
	if errors.Is(err, fs.ErrNotExist) {
		if m, err = newMaster(ctx, t); err != nil {
			return nil, err
		}
		if err = writeJSON(name, m); err == nil {
			sum, err = readJSON(name, &m)
		}
	}
	if err != nil {
		return nil, err
	}
	var key []byte
	switch {
	case m.Version != 1:
		return nil, fmt.Errorf("%s: %w: version %d, this reader knows 1", name, tenantstore.ErrInvalid, m.Version)
	case m.Kind == "file" && t == nil:
		key = m.Key
	case m.Kind == "tpm" && t != nil:
		if key, err = unseal(ctx, t, m); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", tenantstore.ErrKeyUnavailable, name, err)
		}
	default:
		return nil, fmt.Errorf("%s: %w: master key of kind %q (with a TPM configured: %v)", name, tenantstore.ErrInvalid, m.Kind, t != nil)
	}
	defer clear(key)
	d := &Dir{dir: dir, sum: sum}
	d.master, err = xaes.New(key)
	return d, err
}

func newMaster(ctx context.Context, t transport.TPM) (masterFile, error) {
	key := make([]byte, xaes.KeySize)
	_, _ = rand.Read(key)
	if t == nil {
		return masterFile{Version: 1, Kind: "file", Key: key}, nil
	}
	defer clear(key)
	return seal(ctx, t, key)
}

// Close forgets the master key.
func (d *Dir) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.master = nil
}

// Format implements fmt.Formatter: the directory, and no key.
func (d *Dir) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "keys.Dir(%s)", d.dir) }

// LogValue implements slog.LogValuer.
func (d *Dir) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(d)) }

func validKeyID(keyID string) bool {
	ok := len(keyID) >= 1 && len(keyID) <= 64
	for i := 0; ok && i < len(keyID); i++ {
		c := keyID[i]
		ok = 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' && i > 0
	}
	return ok && keyID != "master"
}

func (d *Dir) path(keyID string) (string, error) {
	if !validKeyID(keyID) {
		return "", fmt.Errorf("keys: %w: key name", tenantstore.ErrInvalid)
	}
	return filepath.Join(d.dir, keyID+".json"), nil
}

// Create implements tenantstore.KeyProvider.
func (d *Dir) Create(ctx context.Context, keyID string) error {
	name, err := d.path(keyID)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	unlock, err := lockDir(ctx, d.dir, true)
	if err != nil {
		return fmt.Errorf("keys: create %s: %w", keyID, err)
	}
	defer unlock()
	kek, err := d.load(ctx, name, keyID)
	if err == nil {
		clear(kek)
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := d.sameMaster(); err != nil {
		return fmt.Errorf("keys: create %s: %w", keyID, err)
	}
	kek = make([]byte, xaes.KeySize)
	defer clear(kek)
	_, _ = rand.Read(kek)
	nonce := make([]byte, xaes.NonceSize, xaes.NonceSize+len(kek)+xaes.Overhead)
	_, _ = rand.Read(nonce)
	if err := writeJSON(name, keyFile{Version: 1, ID: keyID, Sealed: d.master.Seal(nonce, nonce, kek, kekAAD(keyID))}); err != nil {
		return fmt.Errorf("keys: create %s: %w", keyID, err)
	}
	return nil
}

// sameMaster reports an error when the directory has not the master key that it
// was opened with: what is sealed under that one nobody would open again.
func (d *Dir) sameMaster() error {
	var m masterFile
	sum, err := readJSON(filepath.Join(d.dir, masterName), &m)
	clear(m.Key)
	if err == nil && sum != d.sum {
		err = errors.New("it has another master key")
	}
	if err != nil {
		return fmt.Errorf("%w: directory %s was replaced while it was open: %w", tenantstore.ErrKeyUnavailable, d.dir, err)
	}
	return nil
}

func kekAAD(keyID string) []byte { return []byte("trusttree keys v1 kek " + keyID) }

// load returns a tenant's key-encryption key, or fs.ErrNotExist. The caller
// holds the lock.
func (d *Dir) load(ctx context.Context, name, keyID string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if d.master == nil {
		return nil, fmt.Errorf("keys: %w: the directory is closed", tenantstore.ErrKeyUnavailable)
	}
	var f keyFile
	if _, err := readJSON(name, &f); err != nil {
		return nil, fmt.Errorf("keys: %w: %w", tenantstore.ErrKeyUnavailable, err)
	}
	switch {
	case f.Version != 1:
		return nil, fmt.Errorf("keys: %s: %w: version %d, this reader knows 1", name, tenantstore.ErrInvalid, f.Version)
	case f.Gone:
		return nil, fmt.Errorf("keys: key %s: %w", keyID, tenantstore.ErrKeyDestroyed)
	case len(f.Sealed) != xaes.NonceSize+xaes.KeySize+xaes.Overhead:
		return nil, fmt.Errorf("keys: %s: %w: sealed key of %d bytes", name, tenantstore.ErrTampered, len(f.Sealed))
	}
	kek, err := d.master.Open(nil, f.Sealed[:xaes.NonceSize], f.Sealed[xaes.NonceSize:], kekAAD(keyID))
	if err != nil {
		return nil, fmt.Errorf("keys: %s: %w: sealed under another master key or changed", name, tenantstore.ErrTampered)
	}
	return kek, nil
}

func (d *Dir) kek(ctx context.Context, keyID string) (cipher.AEAD, error) {
	name, err := d.path(keyID)
	if err != nil {
		return nil, err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	unlock, err := lockDir(ctx, d.dir, false) // nobody overwrites what is read
	if err != nil {
		return nil, fmt.Errorf("keys: key %s: %w", keyID, err)
	}
	defer unlock()
	k, err := d.load(ctx, name, keyID)
	if err != nil {
		return nil, err
	}
	defer clear(k)
	return xaes.New(k)
}

func contextAAD(keyID string, kc tenantstore.KeyContext) []byte {
	return fmt.Appendf(nil, "trusttree keys v1 wrap %s store %v tenant %v generation %d", keyID, kc.Store, kc.Tenant, kc.Generation)
}

// Wrap implements tenantstore.KeyProvider.
func (d *Dir) Wrap(ctx context.Context, keyID string, key []byte, kc tenantstore.KeyContext) ([]byte, error) {
	a, err := d.kek(ctx, keyID)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, xaes.NonceSize, xaes.NonceSize+len(key)+xaes.Overhead)
	_, _ = rand.Read(nonce)
	return a.Seal(nonce, nonce, key, contextAAD(keyID, kc)), nil
}

// Unwrap implements tenantstore.KeyProvider.
func (d *Dir) Unwrap(ctx context.Context, keyID string, wrapped []byte, kc tenantstore.KeyContext) ([]byte, error) {
	a, err := d.kek(ctx, keyID)
	if err != nil {
		return nil, err
	}
	if len(wrapped) < xaes.NonceSize {
		return nil, fmt.Errorf("keys: unwrap with %s: %w: %d bytes", keyID, tenantstore.ErrTampered, len(wrapped))
	}
	key, err := a.Open(nil, wrapped[:xaes.NonceSize], wrapped[xaes.NonceSize:], contextAAD(keyID, kc))
	if err != nil {
		return nil, fmt.Errorf("keys: unwrap with %s: %w: wrapped for another context or changed", keyID, tenantstore.ErrTampered)
	}
	return key, nil
}

// Destroy implements tenantstore.KeyProvider.
func (d *Dir) Destroy(ctx context.Context, keyID string) error {
	name, err := d.path(keyID)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	unlock, err := lockDir(ctx, d.dir, true)
	if err != nil {
		return fmt.Errorf("keys: destroy %s: %w", keyID, err)
	}
	defer unlock()
	if err := overwrite(name); err != nil {
		return fmt.Errorf("keys: destroy %s: %w", keyID, err)
	}
	if err := writeJSON(name, keyFile{Version: 1, ID: keyID, Gone: true}); err != nil {
		return fmt.Errorf("keys: destroy %s: %w", keyID, err)
	}
	return nil
}

// overwrite fills a file with zeros in place.
func overwrite(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(make([]byte, min(fi.Size(), maxFile)), 0); err != nil {
		return err
	}
	return f.Sync()
}

// readJSON also returns the hash of the file.
func readJSON(name string, v any) (sum [sha256.Size]byte, err error) {
	fi, err := os.Lstat(name)
	if err != nil {
		return sum, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxFile {
		return sum, fmt.Errorf("%s: %w: no regular file of at most %d bytes", name, tenantstore.ErrInvalid, maxFile)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return sum, err
	}
	defer clear(b)
	if err := strict.Decode(b, v); err != nil {
		return sum, fmt.Errorf("%s: %w: %w", name, tenantstore.ErrInvalid, err)
	}
	return sha256.Sum256(b), nil
}

func writeJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	defer clear(b)
	return durable.WriteFile(name, b, 0o600)
}
