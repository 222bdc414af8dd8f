package tenantstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/tenantstore"
)

func (w *world) many(s *tenantstore.Store, n int) []*tenantstore.Tenant {
	w.tb.Helper()
	op := w.operator(s)
	var grants []tenantstore.Grant
	for i := range n {
		id := tenantstore.ID(fmt.Sprintf("tenant-%05d", i))
		_, err := s.Create(context.Background(), op, tenantstore.Spec{ID: id})
		require.NoError(w.tb, err)
		grants = append(grants, tenantstore.Grant{Subject: "service", Stream: string(id), Tenant: id, Roles: []tenantstore.Role{tenantstore.RoleRead, tenantstore.RoleWrite}})
	}
	w.grant(s, grants...)
	chain := w.cert("service")
	var list []*tenantstore.Tenant
	for _, g := range grants {
		p, err := s.Authenticate(context.Background(), chain, g.Stream)
		require.NoError(w.tb, err)
		t, err := s.Tenant(context.Background(), p)
		require.NoError(w.tb, err)
		list = append(list, t)
	}
	return list
}

// TestStressEvictionDuringUse has 8 goroutines use many tenants through 16
// handles, so that instances are evicted all the time.
func TestStressEvictionDuringUse(t *testing.T) {
	w := newWorld(t)
	w.edit = func(c *tenantstore.Config) { c.MaxOpen = 16 }
	s := w.open()
	tenants := w.many(s, testenv.N(100, 500))
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 1))
			for i := range testenv.N(100, 1000) {
				a := tenants[rnd.IntN(len(tenants))]
				k := fmt.Appendf(nil, "%d-%d", g, i)
				c := a.Collection("c")
				if _, err := c.Put(t.Context(), k, []byte(a.ID())); !assert.NoError(t, err) {
					return
				}
				r, err := c.Get(t.Context(), k)
				if !assert.NoError(t, err) || !assert.Equal(t, string(a.ID()), string(r.Value)) {
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestStaleHandlesUnderStress destroys and suspends tenants while they are
// used: every use either succeeds or says ErrTenantClosed.
func TestStaleHandlesUnderStress(t *testing.T) {
	w := newWorld(t)
	w.edit = func(c *tenantstore.Config) { c.MaxOpen = 4 }
	s := w.open()
	tenants := w.many(s, 12)
	op := w.operator(s)
	var wg sync.WaitGroup
	var done atomic.Bool
	for g := range 4 {
		wg.Go(func() {
			for i := 0; !done.Load(); i++ {
				_, err := tenants[(i+g)%len(tenants)].Collection("c").Put(t.Context(), []byte("k"), nil)
				if err != nil {
					assert.ErrorIs(t, err, tenantstore.ErrTenantClosed)
				}
			}
		})
	}
	for i, a := range tenants[:10] {
		if i%2 == 0 {
			require.NoError(t, s.Suspend(t.Context(), op, a.ID()))
		} else {
			_, err := s.Destroy(t.Context(), op, a.ID())
			require.NoError(t, err)
		}
		_, err := a.Collection("c").Put(t.Context(), []byte("k"), nil)
		require.ErrorIs(t, err, tenantstore.ErrTenantClosed)
	}
	done.Store(true)
	wg.Wait()
}

// TestFullCacheIsBusy holds every handle and asks for one more.
func TestFullCacheIsBusy(t *testing.T) {
	w := newWorld(t)
	w.edit = func(c *tenantstore.Config) { c.MaxOpen = 2 }
	s := w.open()
	tenants := w.many(s, 3)
	release := make(chan struct{})
	var wg, in sync.WaitGroup
	for _, a := range tenants[:2] {
		in.Add(1)
		wg.Go(func() {
			assert.NoError(t, a.View(t.Context(), func(*tenantstore.Tx) error { in.Done(); <-release; return nil }))
		})
	}
	in.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := tenants[2].Collection("c").Get(ctx, []byte("k"))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_, err = tenants[2].Collection("c").Get(t.Context(), []byte("k"))
	require.ErrorIs(t, err, tenantstore.ErrBusy)
	close(release)
	wg.Wait()
	_, err = tenants[2].Collection("c").Get(t.Context(), []byte("k"))
	require.ErrorIs(t, err, tenantstore.ErrNotFound)
}

// TestManyTenants has thousands of tenants in one process with 256 handles and
// few files.
func TestManyTenants(t *testing.T) {
	var old unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1024, Max: old.Max}))
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &old) }()
	w := newWorld(t)
	s := w.open()
	n := testenv.N(1000, 10_000)
	start := time.Now()
	tenants := w.many(s, n)
	perTenant := time.Since(start) / time.Duration(n)
	var wg sync.WaitGroup
	var next, fds atomic.Int64
	for range 16 {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if _, err := tenants[i].Collection("c").Put(t.Context(), []byte("k"), []byte(tenants[i].ID())); !assert.NoError(t, err) {
					return
				}
				if i%100 == 0 {
					open, _ := os.ReadDir("/proc/self/fd")
					fds.Store(max(fds.Load(), int64(len(open))))
				}
			}
		})
	}
	wg.Wait()
	for range n / 4 {
		a := tenants[rand.IntN(n)]
		r, err := a.Collection("c").Get(t.Context(), []byte("k"))
		require.NoError(t, err)
		require.Equal(t, string(a.ID()), string(r.Value))
	}
	runtime.GC()
	rss, threads := status(t)
	t.Logf("%d tenants: create %v each, %d files open, %d threads, RSS %d MiB", n, perTenant, fds.Load(), threads, rss>>10)
	t.Logf("bars: create 60ms, files 1024, threads 64, RSS 200 MiB")
	assert.Less(t, fds.Load(), int64(1000))
	if testenv.Long() { // in CI the race detector's memory is in it
		assert.Less(t, rss>>10, 200)
	}
	assert.Less(t, threads, 64)
}

func status(t *testing.T) (rssKiB, threads int) {
	b, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		switch f[0] {
		case "VmRSS:":
			rssKiB, err = strconv.Atoi(f[1])
		case "Threads:":
			threads, err = strconv.Atoi(f[1])
		}
		require.NoError(t, err)
	}
	return rssKiB, threads
}

func TestQuotas(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	op := w.operator(s)
	_, err := s.Create(ctx, op, tenantstore.Spec{ID: "small", Quota: tenantstore.Quota{Bytes: 200 << 10, OpsPerSec: 200, Value: 1000, Batch: 10}})
	require.NoError(t, err)
	w.grant(s, tenantstore.Grant{Subject: "service-small", Tenant: "small", Roles: []tenantstore.Role{tenantstore.RoleRead, tenantstore.RoleWrite}})
	a := w.handle(s, "small")
	var q *tenantstore.QuotaError
	_, err = a.Collection("c").Put(ctx, []byte("k"), make([]byte, 1001))
	require.ErrorAs(t, err, &q)
	assert.Equal(t, "value", q.What)
	err = a.Update(ctx, func(x *tenantstore.Tx) error {
		for i := range 11 {
			if _, err := x.Put("c", []byte{byte(i)}, nil); err != nil {
				return err
			}
		}
		return nil
	})
	require.ErrorAs(t, err, &q)
	assert.Equal(t, "batch", q.What)
	seen := map[string]bool{}
	for i := 0; i < 5000 && len(seen) < 2; i++ {
		_, err := a.Collection("c").Put(ctx, fmt.Appendf(nil, "%d", i), make([]byte, 1000))
		if errors.As(err, &q) {
			seen[q.What] = true
			if q.What == "operations" {
				require.Positive(t, q.RetryAfter)
				time.Sleep(q.RetryAfter)
			}
			continue
		}
		require.NoError(t, err)
	}
	assert.Equal(t, map[string]bool{"bytes": true, "operations": true}, seen)
	time.Sleep(time.Second)
	require.NoError(t, a.Collection("c").Delete(ctx, []byte("0")), "what is full can still be emptied")
}
