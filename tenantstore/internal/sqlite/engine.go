package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/ncruces/go-sqlite3"

	"github.com/trusttree/trusttree/internal/durable"
	"github.com/trusttree/trusttree/tenantstore/engine"
)

const (
	dataFile = "data.db"
	walFile  = "data.db-wal"

	// cacheKiB bounds the decrypted pages that SQLite keeps for an instance.
	cacheKiB = 512
)

// Engine keeps instances below a directory.
type Engine struct {
	dir  string
	keys *keyring
}

// New returns the engine whose instances are below dir, which it makes.
func New(dir string) (*Engine, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	return &Engine{dir: dir, keys: newKeyring()}, nil
}

// Name implements engine.Engine.
func (e *Engine) Name() string { return "embedded" }

// Shared implements engine.Engine.
func (e *Engine) Shared() bool { return false }

// Close implements engine.Engine.
func (e *Engine) Close() error { e.keys.close(); return nil }

func (e *Engine) path(ref engine.Ref) string { return filepath.Join(e.dir, ref.String()) }

// Create implements engine.Engine. The instance is built in a directory with a
// temporary name, so that one with the final name is whole; what is in it is
// synced once, before it gets that name.
func (e *Engine) Create(ctx context.Context, ref engine.Ref, fileKey []byte, first ...engine.KV) (err error) {
	if err := e.remove(ref); err != nil {
		return err
	}
	tmp := e.path(ref) + ".new"
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	f, err := os.OpenFile(filepath.Join(tmp, dataFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	db, err := e.open(ctx, tmp, fileKey, true)
	if err != nil {
		return err
	}
	if err := db.Update(ctx, func(tx engine.Tx) error {
		for _, kv := range first {
			if err := tx.Put(kv.Key, kv.Value); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return errors.Join(err, db.Close())
	}
	if err := db.Close(); err != nil {
		return err
	}
	if err := sealed(filepath.Join(tmp, dataFile)); err != nil {
		return err
	}
	if err := durable.SyncDir(tmp); err != nil {
		return err
	}
	return durable.Rename(tmp, e.path(ref))
}

// Open implements engine.Engine.
func (e *Engine) Open(ctx context.Context, ref engine.Ref, fileKey []byte) (engine.DB, error) {
	return e.open(ctx, e.path(ref), fileKey, false)
}

// Fence implements engine.Engine: one process alone has the instances.
func (e *Engine) Fence(context.Context, engine.Ref, bool) error { return nil }

// Destroy implements engine.Engine.
func (e *Engine) Destroy(_ context.Context, ref engine.Ref) error {
	return errors.Join(e.remove(ref), durable.SyncDir(e.dir))
}

// remove removes an instance. The name goes first, so that a cut leaves no half
// an instance under a name that Open would accept.
func (e *Engine) remove(ref engine.Ref) error {
	dead := e.path(ref) + ".dead"
	if err := os.RemoveAll(dead); err != nil {
		return err
	}
	if err := os.Rename(e.path(ref), dead); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return errors.Join(os.RemoveAll(dead), os.RemoveAll(e.path(ref)+".new"))
}

// List implements engine.Engine.
func (e *Engine) List(context.Context) ([]engine.Ref, error) {
	entries, err := os.ReadDir(e.dir)
	if err != nil {
		return nil, err
	}
	seen := map[engine.Ref]bool{}
	var refs []engine.Ref
	for _, entry := range entries {
		name := strings.TrimSuffix(strings.TrimSuffix(entry.Name(), ".new"), ".dead")
		if ref, err := engine.ParseRef(name); err == nil && !seen[ref] {
			seen[ref] = true
			refs = append(refs, ref)
		}
	}
	return refs, nil
}

// sealed syncs a new file and makes sure that it is not SQLite in the clear:
// encryption that is asked for and not applied is an error.
func sealed(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, 16)
	if _, err := io.ReadFull(f, head); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if string(head[:6]) == "SQLite" {
		return fmt.Errorf("%s: the file is not encrypted", name)
	}
	return f.Sync()
}

// inspect refuses whatever is no plain file of our own: a symbolic or hard
// link into another tenant's directory, a device, somebody else's file.
func inspect(dir string) error {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", dir, engine.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %w", dir, engine.ErrCorrupt, err)
	}
	defer root.Close()
	if fi, err := os.Lstat(dir); err != nil || !fi.IsDir() {
		return fmt.Errorf("%s: %w: not a directory", dir, engine.ErrCorrupt)
	}
	for _, name := range []string{dataFile, walFile, dataFile + "-journal", dataFile + "-shm"} {
		fi, err := root.Lstat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist) && name == dataFile:
			return fmt.Errorf("%s: %w: the data file is missing", dir, engine.ErrCorrupt)
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case !fi.Mode().IsRegular():
			return fmt.Errorf("%s: %w: %s is no regular file (%v)", dir, engine.ErrCorrupt, name, fi.Mode())
		default:
			if err := ownFile(fi); err != nil {
				return fmt.Errorf("%s: %w: %s %w", dir, engine.ErrCorrupt, name, err)
			}
		}
	}
	return nil
}

func (e *Engine) open(ctx context.Context, dir string, fileKey []byte, create bool) (_ *db, err error) {
	if err := inspect(dir); err != nil {
		return nil, err
	}
	token, takeBack := e.keys.lend(fileKey)
	defer takeBack()
	u := url.URL{Scheme: "file", Path: filepath.Join(dir, dataFile),
		RawQuery: url.Values{"vfs": {e.keys.name}, "textkey": {token}, "modeof": {filepath.Join(dir, dataFile)}}.Encode()}
	c, err := sqlite3.OpenFlags(u.String(), sqlite3.OPEN_READWRITE|sqlite3.OPEN_URI|sqlite3.OPEN_NOFOLLOW)
	if err != nil {
		return nil, classify(dir, err)
	}
	d := &db{c: c, name: dir, lock: make(chan struct{}, 1)}
	d.wait.Lock, d.wait.Commit = d.lock, d.runGroup
	defer func() {
		if err != nil {
			_ = d.Close()
		}
	}()
	c.SetInterrupt(ctx)
	defer c.SetInterrupt(context.Background())
	c.Limit(sqlite3.LIMIT_ATTACHED, 0)
	c.Limit(sqlite3.LIMIT_LENGTH, engine.MaxValue+engine.MaxKey+64)
	for _, o := range []sqlite3.DBConfig{sqlite3.DBCONFIG_ENABLE_LOAD_EXTENSION, sqlite3.DBCONFIG_ENABLE_TRIGGER, sqlite3.DBCONFIG_ENABLE_VIEW,
		sqlite3.DBCONFIG_TRUSTED_SCHEMA} {
		if _, err := c.Config(o, false); err != nil {
			return nil, classify(dir, err)
		}
	}
	// Exclusive locking keeps the index of the log in memory: no -shm file.
	sync := "FULL"
	if create { // Create syncs the whole
		sync = "OFF"
	}
	setup := fmt.Sprintf("PRAGMA locking_mode=EXCLUSIVE; PRAGMA temp_store=MEMORY; PRAGMA synchronous=%s; PRAGMA secure_delete=ON; "+
		"PRAGMA cell_size_check=ON; PRAGMA cache_size=-%d; PRAGMA journal_mode=WAL;", sync, cacheKiB)
	if err := c.Exec(setup); err != nil {
		return nil, classify(dir, err)
	}
	if create {
		if err := c.Exec("CREATE TABLE r (k BLOB NOT NULL PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID, STRICT"); err != nil {
			return nil, classify(dir, err)
		}
	}
	if err := d.prepare(); err != nil {
		return nil, classify(dir, err)
	}
	if err := c.SetAuthorizer(authorize); err != nil {
		return nil, classify(dir, err)
	}
	return d, nil
}

// authorize is the second line behind the limits: after the set-up nothing but
// our own statements may be compiled.
func authorize(action sqlite3.AuthorizerActionCode, _, _, _, _ string) sqlite3.AuthorizerReturnCode {
	switch action {
	case sqlite3.AUTH_SELECT, sqlite3.AUTH_READ, sqlite3.AUTH_INSERT, sqlite3.AUTH_UPDATE, sqlite3.AUTH_DELETE,
		sqlite3.AUTH_TRANSACTION, sqlite3.AUTH_SAVEPOINT:
		return sqlite3.AUTH_OK
	}
	return sqlite3.AUTH_DENY
}

// weather reports whether an error is of the machine's state, and says nothing
// about the file.
func weather(no syscall.Errno) bool {
	switch no {
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EINTR, syscall.EAGAIN, syscall.EROFS, syscall.EACCES, syscall.EPERM:
		return true
	}
	return false
}

func classify(name string, err error) error {
	var code sqlite3.ErrorCode
	var no syscall.Errno
	switch {
	case err == nil:
		return nil
	case errors.As(err, &no) && (no == syscall.ENOSPC || no == syscall.EDQUOT):
		return fmt.Errorf("%s: %w: %w", name, engine.ErrFull, err)
	case errors.As(err, &no) && weather(no):
		return fmt.Errorf("%s: %w: %w", name, engine.ErrUnavailable, err)
	case !errors.As(err, &code):
		return err
	}
	switch code {
	case sqlite3.CORRUPT, sqlite3.NOTADB, sqlite3.FORMAT, sqlite3.CANTOPEN, sqlite3.MISMATCH, sqlite3.IOERR, sqlite3.ERROR, sqlite3.PROTOCOL:
		return fmt.Errorf("%s: %w: %w", name, engine.ErrCorrupt, err)
	case sqlite3.FULL:
		return fmt.Errorf("%s: %w: %w", name, engine.ErrFull, err)
	case sqlite3.BUSY, sqlite3.LOCKED, sqlite3.NOMEM:
		return fmt.Errorf("%s: %w: %w", name, engine.ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", name, err)
}
