package tenantstore_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/vfs"
	"github.com/ncruces/go-sqlite3/vfs/adiantum"
	"github.com/stretchr/testify/require"
	cipher "lukechampine.com/adiantum"
	"lukechampine.com/adiantum/hbsh"
)

// rawDB is the peer of the benchmarks: ncruces/go-sqlite3 with its Adiantum VFS
// alone, written as one would by hand. Page size, cache, journal, sync mode,
// locking, table and statements are those of the embedded engine.
type rawDB struct {
	c             *sqlite3.Conn
	put, get      *sqlite3.Stmt
	begin, commit *sqlite3.Stmt
}

type fixedKey struct{}

func (fixedKey) KDF(string) []byte          { return make([]byte, 32) }
func (fixedKey) HBSH(key []byte) *hbsh.HBSH { return cipher.New(key) }

func openRaw(b *testing.B) *rawDB {
	b.Helper()
	name := "raw-" + b.Name()
	vfs.Register(name, adiantum.Wrap(vfs.Find(""), fixedKey{}))
	file := filepath.Join(b.TempDir(), "raw.db")
	c, err := sqlite3.Open(fmt.Sprintf("file:%s?vfs=%s&textkey=x", file, name))
	require.NoError(b, err)
	b.Cleanup(func() { _ = c.Close(); vfs.Unregister(name) })
	require.NoError(b, c.Exec("PRAGMA locking_mode=EXCLUSIVE; PRAGMA temp_store=MEMORY; PRAGMA synchronous=FULL; PRAGMA cache_size=-512; PRAGMA journal_mode=WAL;"+
		"CREATE TABLE r (k BLOB NOT NULL PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID, STRICT"))
	r := &rawDB{c: c}
	for sql, p := range map[string]**sqlite3.Stmt{
		"INSERT INTO r VALUES(?,?) ON CONFLICT(k) DO UPDATE SET v=excluded.v": &r.put,
		"SELECT v FROM r WHERE k=?": &r.get,
		"BEGIN IMMEDIATE":           &r.begin, "COMMIT": &r.commit,
	} {
		*p, _, err = c.PrepareFlags(sql, sqlite3.PREPARE_PERSISTENT)
		require.NoError(b, err)
	}
	return r
}

// batch writes n records from first on in one transaction.
func (r *rawDB) batch(first, n int, v []byte) error {
	if err := r.begin.Exec(); err != nil {
		return err
	}
	for i := first; i < first+n; i++ {
		if err := r.put.BindBlob(1, rawKey(i)); err != nil {
			return err
		}
		if err := r.put.BindBlob(2, v); err != nil {
			return err
		}
		if err := r.put.Exec(); err != nil {
			return err
		}
	}
	return r.commit.Exec()
}

func (r *rawDB) read(_ context.Context, i int) ([]byte, error) {
	if err := r.get.BindBlob(1, rawKey(i)); err != nil {
		return nil, err
	}
	var v []byte
	if r.get.Step() {
		v = r.get.ColumnBlob(0, []byte{})
	}
	return v, r.get.Reset()
}
