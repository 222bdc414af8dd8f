package postgres_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/internal/testpg"
	"github.com/trusttree/trusttree/tenantstore"
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

// TestConnectionStringsAreNotPrinted prints what holds the administrator's.
func TestConnectionStringsAreNotPrinted(t *testing.T) {
	c := server(t)
	cfg := postgres.Config{Admin: c.Admin, Tenants: c.Admin, Name: "eu"}
	e, err := postgres.New(t.Context(), cfg)
	require.NoError(t, err)
	defer e.Close()
	var log strings.Builder
	for _, h := range []slog.Handler{slog.NewJSONHandler(&log, nil), slog.NewTextHandler(&log, nil)} {
		slog.New(h).Info("x", "engine", e, "config", cfg)
	}
	out := log.String() + fmt.Sprintf("%v %+v %#v %s %q", e, e, e, e, e) + fmt.Sprintf("%v %+v %#v %s %q", cfg, cfg, cfg, cfg, cfg)
	require.NotContains(t, out, "admin-test")
	require.Contains(t, out, "eu")
}

// TestDroppedConnectionsLoseNothing has the server drop every connection of a
// tenant again and again while it writes: what was acknowledged is there, what
// was refused says so, and the tenant goes on.
func TestDroppedConnectionsLoseNothing(t *testing.T) {
	c := server(t)
	e, err := postgres.New(t.Context(), postgres.Config{Admin: c.Admin, Schemas: true})
	require.NoError(t, err)
	defer e.Close()
	r := engine.Ref{UID: [16]byte{0xdd}, Generation: 1}
	require.NoError(t, e.Create(t.Context(), r, key(1)))
	defer func() { require.NoError(t, e.Destroy(t.Context(), r)) }()
	db, err := e.Open(t.Context(), r, key(1))
	require.NoError(t, err)
	role := "t_" + strings.Replace(r.String(), "-", "_", 1)
	var acked []string
	lost := 0
	for i := range 60 {
		k := fmt.Sprintf("%03d", i)
		err := db.Update(t.Context(), func(tx engine.Tx) error {
			if err := tx.Put([]byte("a"+k), []byte(k)); err != nil {
				return err
			}
			if i%3 == 1 {
				admin(t, c, "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE usename = '"+role+"'")
			}
			return tx.Put([]byte("b"+k), []byte(k))
		})
		if err != nil {
			require.ErrorIs(t, err, engine.ErrUnavailable)
			require.ErrorIs(t, err, engine.ErrAborted, "it was lost before its commit")
			lost++
			continue
		}
		acked = append(acked, k)
	}
	require.Equal(t, 20, lost)
	require.NoError(t, db.View(t.Context(), func(tx engine.Tx) error {
		for _, half := range []string{"a", "b"} {
			n := 0
			for kv, err := range tx.Scan([]byte(half), []byte(half+"z"), false, 1000) {
				require.NoError(t, err)
				require.Equal(t, half+acked[n], string(kv.Key))
				n++
			}
			require.Len(t, acked, n, "all of a transaction or nothing")
		}
		return nil
	}))
	require.NoError(t, db.Close())
}

// TestRowsThatNobodyWroteAreTampering has the server's administrator put rows
// into a tenant's table whose keys and values have no form at all.
func TestRowsThatNobodyWroteAreTampering(t *testing.T) {
	c, ctx := server(t), t.Context()
	e, err := postgres.New(ctx, postgres.Config{Admin: c.Admin, Schemas: true})
	require.NoError(t, err)
	defer e.Close()
	w := newSite(t)
	s := w.open(t, e, t.TempDir(), "")
	defer clearServer(t, e)
	w.assign(t, s, 1, tenantstore.RoleRead, tenantstore.RoleWrite, tenantstore.RoleAdmin)
	_, err = s.Create(ctx, w.principal(t, s, "operator"), tenantstore.Spec{ID: "acme", Engine: e.Name()})
	require.NoError(t, err)
	a := w.handle(t, s)
	require.NoError(t, a.Collection("c").Append(ctx, "s", time.Unix(1, 0), []byte("p")))
	table := database(t, e, a) + ".r"
	for name, sql := range map[string]string{
		"an empty key":      "INSERT INTO " + table + " VALUES ('', '')",
		"a huge value":      "INSERT INTO " + table + " VALUES ('\\x72', decode(repeat('00', 40000000), 'hex'))",
		"a shortened point": "INSERT INTO " + table + " SELECT substring(k from 1 for 26) || '\\xff', v FROM " + table + " WHERE get_byte(k, 0) = 115 AND length(k) = 29 ORDER BY k LIMIT 1",
	} {
		t.Run(name, func(t *testing.T) {
			admin(t, c, sql)
			_, err := a.Verify(ctx)
			require.Error(t, err)
			_, err = a.Backup(ctx, io.Discard, recipient(t))
			require.Error(t, err)
			require.Error(t, s.RotateKey(ctx, w.principal(t, s, "operator"), "acme"))
			_ = a.Collection("c").Append(ctx, "s", time.Unix(1, 0), []byte("p")) // whatever it says, it does not panic
			admin(t, c, "DELETE FROM "+table+" WHERE length(k) IN (0, 1, 27)")
			_, err = a.Verify(ctx)
			require.NoError(t, err)
		})
	}
	require.NoError(t, s.Close(ctx))
}

func recipient(t *testing.T) age.Recipient {
	id, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	return id.Recipient()
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
