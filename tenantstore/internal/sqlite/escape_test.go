package sqlite

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/ncruces/go-sqlite3"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tenantstore/engine"
)

// No SQL comes from outside. Should some get in all the same, it finds no way
// out of the instance.
func TestSQLCannotEscape(t *testing.T) {
	dir := t.TempDir()
	e, err := New(filepath.Join(dir, "e"))
	require.NoError(t, err)
	defer e.Close()
	r := engine.Ref{UID: [16]byte{1}, Generation: 1}
	k := make([]byte, 32)
	require.NoError(t, e.Create(t.Context(), r, k))
	x, err := e.Open(t.Context(), r, k)
	require.NoError(t, err)
	d := x.(*db)
	defer d.Close()
	out := filepath.Join(dir, "out.db")
	for _, sql := range []string{
		"ATTACH '" + out + "' AS x", "ATTACH hex('61') AS x", "ATTACH ':memory:' AS x", "VACUUM INTO '" + out + "'", "VACUUM",
		"SELECT load_extension('x')", "SELECT readfile('/etc/passwd')", "SELECT writefile('" + out + "','x')",
		"PRAGMA key='x'", "PRAGMA hexkey='00'", "PRAGMA journal_mode=DELETE", "PRAGMA locking_mode=NORMAL", "PRAGMA writable_schema=ON", "PRAGMA temp_store=FILE",
		"CREATE TABLE t (a)", "CREATE TEMP TABLE t (a)", "DROP TABLE r", "CREATE TRIGGER t AFTER INSERT ON r BEGIN DELETE FROM r; END", "CREATE VIEW v AS SELECT 1",
		"CREATE VIRTUAL TABLE v USING fts5(a)",
	} {
		require.Error(t, d.c.Exec(sql), sql)
		_, err := os.Stat(out)
		require.ErrorIs(t, err, os.ErrNotExist, sql)
	}
	require.NoError(t, d.c.SetAuthorizer(nil)) // the limit holds without the authorizer too
	require.Error(t, d.c.Exec("ATTACH '"+out+"' AS x"))
	require.NoError(t, d.c.SetAuthorizer(func(sqlite3.AuthorizerActionCode, string, string, string, string) sqlite3.AuthorizerReturnCode {
		return sqlite3.AUTH_OK
	}))
	require.Error(t, d.c.Exec("ATTACH hex('61') AS x"))
	require.NoError(t, d.c.SetAuthorizer(authorize))
}
