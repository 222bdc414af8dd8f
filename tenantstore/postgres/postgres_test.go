package postgres_test

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/internal/testpg"
	"github.com/trusttree/trusttree/tenantstore/engine"
	"github.com/trusttree/trusttree/tenantstore/engine/enginetest"
	"github.com/trusttree/trusttree/tenantstore/postgres"
)

func TestConformance(t *testing.T) {
	c := server(t)
	for name, cfg := range map[string]postgres.Config{
		"database for each tenant": {Admin: c.Admin},
		"schema for each tenant":   {Admin: c.Admin, Schemas: true},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := postgres.New(t.Context(), cfg)
			require.NoError(t, err)
			enginetest.Run(t, e)
			require.NoError(t, e.Close())
		})
	}
	t.Run("behind pgbouncer in transaction mode", func(t *testing.T) {
		e, err := postgres.New(t.Context(), postgres.Config{Admin: c.Admin, Tenants: bouncer(t, c)})
		require.NoError(t, err)
		enginetest.Run(t, e)
		require.NoError(t, e.Close())
	})
}

func admin(t *testing.T, c *testpg.Server, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), c.Admin)
	require.NoError(t, err)
	defer conn.Close(t.Context())
	_, err = conn.Exec(t.Context(), sql)
	require.NoError(t, err)
}

func key(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

func TestRoleThatCanDoMoreIsRefused(t *testing.T) {
	c := server(t)
	e, err := postgres.New(t.Context(), postgres.Config{Admin: c.Admin})
	require.NoError(t, err)
	defer e.Close()
	r := engine.Ref{UID: [16]byte{0xaa}, Generation: 1}
	role := "t_" + strings.Replace(r.String(), "-", "_", 1)
	require.NoError(t, e.Create(t.Context(), r, key(1)))
	defer func() { require.NoError(t, e.Destroy(t.Context(), r)) }()
	for _, power := range []string{"SUPERUSER", "BYPASSRLS", "CREATEROLE", "CREATEDB", "REPLICATION"} {
		admin(t, c, "ALTER ROLE "+role+" "+power)
		_, err := e.Open(t.Context(), r, key(1))
		require.ErrorIs(t, err, engine.ErrCorrupt, power)
		admin(t, c, "ALTER ROLE "+role+" NO"+power)
	}
	db, err := e.Open(t.Context(), r, key(1))
	require.NoError(t, err)
	require.NoError(t, db.Close())
}

// What one tenant's login can reach on the server: nothing of another's.
func TestOneTenantsLoginReachesNoOther(t *testing.T) {
	c := server(t)
	for mode, schemas := range []bool{false, true} {
		e, err := postgres.New(t.Context(), postgres.Config{Admin: c.Admin, Schemas: schemas})
		require.NoError(t, err)
		var names []string
		for i := range 2 {
			r := engine.Ref{UID: [16]byte{0xbb, byte(mode), byte(i)}, Generation: 1}
			require.NoError(t, e.Create(t.Context(), r, key(1)))
			t.Cleanup(func() { assert.NoError(t, e.Destroy(context.Background(), r)) })
			names = append(names, "t_"+strings.Replace(r.String(), "-", "_", 1))
		}
		admin(t, c, "ALTER ROLE "+names[0]+" PASSWORD 'stolen'")
		cc, err := pgx.ParseConfig(c.Admin)
		require.NoError(t, err)
		cc.User, cc.Password = names[0], "stolen"
		var attacks []string
		if schemas {
			attacks = []string{"SELECT * FROM " + names[1] + ".r", "CREATE TABLE x (y int)", "DROP TABLE " + names[0] + ".r",
				"ALTER TABLE " + names[0] + ".r ADD z int", "TRUNCATE " + names[0] + ".r"}
		} else {
			cc.Database = names[1]
			_, err := pgx.ConnectConfig(t.Context(), cc)
			require.ErrorContains(t, err, "permission denied for database")
			cc.Database = names[0]
			attacks = []string{"CREATE TABLE public.x (y int)", "DROP TABLE tenant.r", "TRUNCATE tenant.r", "CREATE SCHEMA x", "COPY tenant.r TO PROGRAM 'cat'"}
		}
		attacks = append(attacks, "SET ROLE "+names[1], "SET ROLE admin", "CREATE ROLE x", "SELECT pg_read_file('/etc/passwd')", "SELECT * FROM pg_authid")
		conn, err := pgx.ConnectConfig(t.Context(), cc)
		require.NoError(t, err)
		for _, sql := range attacks {
			_, err := conn.Exec(t.Context(), sql)
			require.ErrorContains(t, err, "SQLSTATE 42501", sql)
		}
		require.NoError(t, conn.Close(t.Context()))
	}
}

func TestAdministratorsPasswordIsInNoError(t *testing.T) {
	_, err := postgres.New(t.Context(), postgres.Config{Admin: "postgres://admin:s3cret@127.0.0.1:bad/x"})
	require.Error(t, err)
	require.NotContains(t, err.Error(), "s3cret")
	_, err = postgres.New(t.Context(), postgres.Config{Admin: "host=127.0.0.1 port=1 user=admin password=s3cret dbname=x"})
	require.ErrorIs(t, err, engine.ErrUnavailable)
	require.NotContains(t, err.Error(), "s3cret")
}

// TestManyTenantsInSchemas has more tenants in one database than databases
// would fit on a small server (over a thousand in the long run), through a few
// connections, and each reads its own.
func TestManyTenantsInSchemas(t *testing.T) {
	c := server(t)
	e, err := postgres.New(t.Context(), postgres.Config{Admin: c.Admin, Schemas: true, MaxConns: 8})
	require.NoError(t, err)
	defer e.Close()
	n := testenv.N(12, 1100)
	ref := func(i int) engine.Ref {
		return engine.Ref{UID: [16]byte{0xcc, byte(i >> 8), byte(i)}, Generation: 1}
	}
	defer func() {
		for i := range n {
			assert.NoError(t, e.Destroy(context.Background(), ref(i)))
		}
	}()
	start := time.Now()
	for i := range n {
		require.NoError(t, e.Create(t.Context(), ref(i), key(byte(i))))
	}
	t.Logf("%d tenants in schemas of one database: %v each", n, time.Since(start)/time.Duration(n))
	for i := 0; i < n; i += 1 + n/12 {
		db, err := e.Open(t.Context(), ref(i), key(byte(i)))
		require.NoError(t, err)
		want := []byte(ref(i).String())
		require.NoError(t, db.Update(t.Context(), func(tx engine.Tx) error { return tx.Put([]byte("k"), want) }))
		require.NoError(t, db.View(t.Context(), func(tx engine.Tx) error {
			got, err := tx.Get([]byte("k"))
			require.Equal(t, want, got)
			return err
		}))
		require.NoError(t, db.Close())
	}
}
