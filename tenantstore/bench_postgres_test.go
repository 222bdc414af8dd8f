package tenantstore_test

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testpg"
	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/postgres"
)

// pgStore is a tenant whose instance is a database of the server.
func pgStore(b *testing.B, admin string) *tenantstore.Tenant {
	b.Helper()
	e, err := postgres.New(b.Context(), postgres.Config{Admin: admin})
	require.NoError(b, err)
	b.Cleanup(func() { _ = e.Close() })
	w := newWorld(b)
	w.edit = func(c *tenantstore.Config) {
		c.Quota = tenantstore.Quota{OpsPerSec: 1 << 30, Batch: 1 << 20}
		c.Region, c.System, c.Instance = "eu", e.Name(), "bench"
		c.Placement = []tenantstore.Placement{{Region: "eu", Engine: e}}
	}
	s := w.open()
	info, err := s.Create(b.Context(), w.operator(s), tenantstore.Spec{ID: "bench", Engine: e.Name()})
	require.NoError(b, err)
	require.Equal(b, e.Name(), info.Engine)
	w.grant(s, tenantstore.Grant{Subject: "service-bench", Tenant: "bench", Roles: []tenantstore.Role{tenantstore.RoleRead, tenantstore.RoleWrite}})
	return w.handle(s, "bench")
}

// rawPG is the peer: pgx as one would use it by hand, with prepared statements
// and the store's table.
type rawPG struct{ pool *pgxpool.Pool }

const (
	rawPut = "INSERT INTO r VALUES ($1, $2) ON CONFLICT (k) DO UPDATE SET v = excluded.v"
	rawGet = "SELECT v FROM r WHERE k = $1"
)

func openRawPG(b *testing.B, admin string) rawPG {
	b.Helper()
	cfg, err := pgxpool.ParseConfig(admin)
	require.NoError(b, err)
	cfg.MaxConns = 4 // as many as a tenant's instance has
	pool, err := pgxpool.NewWithConfig(b.Context(), cfg)
	require.NoError(b, err)
	b.Cleanup(pool.Close)
	_, err = pool.Exec(b.Context(), "DROP TABLE IF EXISTS r")
	require.NoError(b, err)
	_, err = pool.Exec(b.Context(), "CREATE TABLE r (k bytea PRIMARY KEY, v bytea NOT NULL)")
	require.NoError(b, err)
	return rawPG{pool}
}

func (r rawPG) batch(ctx context.Context, first, n int, v []byte) error {
	return pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		for i := first; i < first+n; i++ {
			if _, err := tx.Exec(ctx, rawPut, rawKey(i), v); err != nil {
				return err
			}
		}
		return nil
	})
}

func (r rawPG) pipelined(ctx context.Context, first, n int, v []byte) error {
	return pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		var all pgx.Batch
		for i := first; i < first+n; i++ {
			all.Queue(rawPut, rawKey(i), v)
		}
		return tx.SendBatch(ctx, &all).Close()
	})
}

// BenchmarkPostgreSQL compares a tenant's instance on PostgreSQL with pgx on a
// table of the same server. Its fsync is on, its clients are on a unix socket.
func BenchmarkPostgreSQL(b *testing.B) {
	const n, records = 1000, 10_000
	v := random(benchValue)
	server := testpg.Start(b)
	store, raw := pgStore(b, server.Admin), openRawPG(b, server.Admin)
	c := store.Collection("c")
	next := 0
	storeBatch := func(ctx context.Context, first int) error {
		return store.Update(ctx, func(x *tenantstore.Tx) error {
			for i := first; i < first+n; i++ {
				if _, err := x.Put("c", benchKey(i), v); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for first := 0; first < records; first += n {
		require.NoError(b, storeBatch(b.Context(), first))
		require.NoError(b, raw.pipelined(b.Context(), first, n, v))
	}
	next = records
	batches := []struct {
		name string
		do   func(ctx context.Context, first int) error
	}{
		{"store", storeBatch},
		{"raw", func(ctx context.Context, first int) error { return raw.batch(ctx, first, n, v) }},
		{"raw-pipelined", func(ctx context.Context, first int) error { return raw.pipelined(ctx, first, n, v) }},
	}
	for _, w := range batches {
		b.Run("batch1000/"+w.name, func(b *testing.B) {
			for b.Loop() {
				require.NoError(b, w.do(b.Context(), next))
				next += n
			}
		})
	}
	gets := []struct {
		name string
		do   func(ctx context.Context, i int) error
	}{
		{"store", func(ctx context.Context, i int) error { _, err := c.Get(ctx, benchKey(i)); return err }},
		{"raw", func(ctx context.Context, i int) error {
			var out []byte
			return raw.pool.QueryRow(ctx, rawGet, rawKey(i)).Scan(&out)
		}},
	}
	for _, w := range gets {
		b.Run("get/"+w.name, func(b *testing.B) {
			for b.Loop() {
				if err := w.do(b.Context(), rand.IntN(records)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	puts := []struct {
		name string
		do   func(ctx context.Context, i int) error
	}{
		{"store", func(ctx context.Context, i int) error { _, err := c.Put(ctx, benchKey(i), v); return err }},
		{"raw", func(ctx context.Context, i int) error { _, err := raw.pool.Exec(ctx, rawPut, rawKey(i), v); return err }},
	}
	for _, w := range puts {
		b.Run("put/"+w.name, func(b *testing.B) { durable(b, 1, w.do) })
		b.Run("put-64-writers/"+w.name, func(b *testing.B) { durable(b, 64, w.do) })
	}
}
