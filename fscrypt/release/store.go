package release

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/trusttree/trusttree/internal/durable"
)

// Store keeps small values by key. Keys are made of lower-case letters, digits
// and dashes. What Put acknowledged must be durable.
type Store interface {
	// Get returns fs.ErrNotExist for a key that is not there.
	Get(ctx context.Context, key string) ([]byte, error)
	// Put stores a value. With create it returns fs.ErrExist for a key that is
	// there, and of two at once one wins.
	Put(ctx context.Context, key string, value []byte, create bool) error
	Delete(ctx context.Context, key string) error
	// List returns the keys that begin with prefix.
	List(ctx context.Context, prefix string) ([]string, error)
}

// maxValue is the largest stored value read, in bytes.
const maxValue = 16 << 10

// DirStore keeps each value in a file of a directory that it has for itself.
// One process at a time may use a directory.
type DirStore struct {
	dir string
	mu  sync.Mutex
}

// NewDirStore opens a directory, which it makes if needed.
func NewDirStore(dir string) (*DirStore, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("release: %w", err)
	}
	if err := durable.Clean(dir); err != nil {
		return nil, fmt.Errorf("release: %w", err)
	}
	return &DirStore{dir: dir}, nil
}

var validKey = regexp.MustCompile(`^[a-z0-9-]{1,200}$`)

func (d *DirStore) path(key string) (string, error) {
	if !validKey.MatchString(key) {
		return "", fmt.Errorf("release: bad key %.40q", key)
	}
	return filepath.Join(d.dir, key), nil
}

// Get implements Store.
func (d *DirStore) Get(_ context.Context, key string) ([]byte, error) {
	p, err := d.path(key)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxValue+1))
	if err == nil && len(b) > maxValue {
		err = fmt.Errorf("%s: more than %d bytes", p, maxValue)
	}
	return b, err
}

// Put implements Store.
func (d *DirStore) Put(_ context.Context, key string, value []byte, create bool) error {
	p, err := d.path(key)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if create {
		if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(err, fmt.Errorf("%s: %w", key, fs.ErrExist))
		}
	}
	return durable.WriteFile(p, value, 0o600)
}

// Delete implements Store.
func (d *DirStore) Delete(_ context.Context, key string) error {
	p, err := d.path(key)
	if err != nil {
		return err
	}
	return durable.Remove(p)
}

// List implements Store.
func (d *DirStore) List(_ context.Context, prefix string) ([]string, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, err
	}
	var keys []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) && validKey.MatchString(e.Name()) {
			keys = append(keys, e.Name())
		}
	}
	return keys, nil
}

// strict decodes one JSON value and refuses unknown fields.
func strict(b []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	return dec.Decode(v)
}
