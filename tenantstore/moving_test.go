package tenantstore_test

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/internal/powercut"
	"github.com/trusttree/trusttree/tenantstore/internal/sqlite"
)

// powered opens a store with the tenant acme on an engine that can be cut.
func powered(t *testing.T, w *world) (*tenantstore.Store, *powercut.Power) {
	p := power(t, w, "powered")
	s := w.open()
	_, err := s.Create(t.Context(), w.operator(s), tenantstore.Spec{ID: "acme", Region: "eu"})
	require.NoError(t, err)
	w.grant(s, tenantstore.Grant{Subject: "service-acme", Tenant: "acme", Roles: []tenantstore.Role{tenantstore.RoleRead, tenantstore.RoleWrite, tenantstore.RoleAdmin}})
	return s, p
}

// power gives a world an engine that can be cut, in the region eu.
func power(t *testing.T, w *world, system string) *powercut.Power {
	inner, err := sqlite.New(filepath.Join(w.dir, "powered"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = inner.Close() })
	p := powercut.New()
	w.edit = func(c *tenantstore.Config) {
		c.System = system
		c.Placement = []tenantstore.Placement{{Region: "eu", Engine: &powercut.Engine{Engine: inner, As: "powered", Power: p}}}
	}
	return p
}

// contents is all that the collection c of acme holds.
func contents(t *testing.T, w *world, s *tenantstore.Store) map[string]string {
	got := map[string]string{}
	for r, err := range w.handle(s, "acme").Collection("c").Scan(t.Context(), tenantstore.Range{}) {
		require.NoError(t, err)
		got[string(r.Key)] = string(r.Value)
	}
	return got
}

// TestWritersGoOnWhileTheKeyRotates stops a rotation in the middle of its copy
// and writes, overwrites, deletes and appends: nothing waits, and all of it is
// there afterwards.
func TestWritersGoOnWhileTheKeyRotates(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s, p := powered(t, w)
	op := w.operator(s)
	c := w.handle(s, "acme").Collection("c")
	want := map[string]string{}
	put := func(k, v string) {
		_, err := c.Put(ctx, []byte(k), []byte(v))
		require.NoError(t, err)
		want[k] = v
	}
	for i := range 3000 {
		put(fmt.Sprintf("k%04d", i), "old")
	}
	for round := range 2 { // generations 2 and 3
		gate := p.Hold(uint32(round + 2))
		done := make(chan error, 1)
		go func() { done <- s.RotateKey(ctx, op, "acme") }()
		<-p.Held()
		for i := 0; i < 3000; i += 7 {
			put(fmt.Sprintf("k%04d", i), fmt.Sprintf("new %d", round))
		}
		for i := 3; i < 3000; i += 1000 {
			require.NoError(t, c.Delete(ctx, fmt.Appendf(nil, "k%04d", i)))
			delete(want, fmt.Sprintf("k%04d", i))
		}
		put(fmt.Sprintf("late%d", round), "late")
		require.NoError(t, c.Append(ctx, "s", time.Unix(int64(round), 0), []byte("p")))
		gate <- nil
		require.NoError(t, <-done)
		require.Equal(t, want, contents(t, w, s))
	}
	n := 0
	for _, err := range c.Series(ctx, "s", time.Time{}, time.Time{}) {
		require.NoError(t, err)
		n++
	}
	assert.Equal(t, 2, n)
}

// TestRotationUnderLoadLosesNothing rotates again and again while writers add
// records; what they were told is stored is there.
func TestRotationUnderLoadLosesNothing(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	c := w.tenant(s, "acme").Collection("c")
	op := w.operator(s)
	var stop atomic.Bool
	var wg sync.WaitGroup
	var counts [4]int
	for g := range counts {
		wg.Go(func() {
			for !stop.Load() {
				if _, err := c.Put(ctx, fmt.Appendf(nil, "%d-%d", g, counts[g]), []byte("v")); !assert.NoError(t, err) {
					return
				}
				counts[g]++
			}
		})
	}
	for range 4 {
		require.NoError(t, s.RotateKey(ctx, op, "acme"))
	}
	stop.Store(true)
	wg.Wait()
	for g, n := range counts {
		for i := range n {
			_, err := c.Get(ctx, fmt.Appendf(nil, "%d-%d", g, i))
			require.NoError(t, err, "%d-%d of %d", g, i, n)
		}
	}
}

// TestCutRotationGoesOnWhereItWasCut cuts rotations in the middle of their copy:
// by the caller's deadline, by a suspension, by a power cut. What was copied is
// not copied again; what was written in between, before and after the restart,
// is in the new generation.
func TestCutRotationGoesOnWhereItWasCut(t *testing.T) {
	const records, cutAfter = 5000, 2 // transactions of the copy
	for name, cut := range map[string]func(t *testing.T, w *world, s *tenantstore.Store, p *powercut.Power) *tenantstore.Store{
		"by the deadline": func(t *testing.T, w *world, s *tenantstore.Store, p *powercut.Power) *tenantstore.Store {
			ctx, cancel := context.WithCancel(t.Context())
			rotateUntil(t, w, s, p, ctx, cutAfter, func(gate chan<- error) { cancel(); gate <- nil })
			return s
		},
		"by a suspension": func(t *testing.T, w *world, s *tenantstore.Store, p *powercut.Power) *tenantstore.Store {
			rotateUntil(t, w, s, p, t.Context(), cutAfter, func(gate chan<- error) {
				require.ErrorIs(t, s.Suspend(t.Context(), w.principal(s, "service-acme", ""), "acme"), tenantstore.ErrDenied) // interrupts nothing
			}, func(gate chan<- error) {
				over, cancel := context.WithCancel(t.Context())
				cancel() // it does not wait until the copy has ended
				require.ErrorIs(t, s.Suspend(over, w.operator(s), "acme"), context.Canceled)
				gate <- nil
			})
			require.NoError(t, s.Suspend(t.Context(), w.operator(s), "acme"))
			require.NoError(t, s.Resume(t.Context(), w.operator(s), "acme"))
			return s
		},
		"by a power cut": func(t *testing.T, w *world, s *tenantstore.Store, p *powercut.Power) *tenantstore.Store {
			rotateUntil(t, w, s, p, t.Context(), cutAfter, func(gate chan<- error) { p.Cut(0, false); gate <- nil })
			_ = s.Close(t.Context())
			p.Cut(-1, false)
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, ctx := newWorld(t), t.Context()
			s, p := powered(t, w)
			want := map[string]string{}
			require.NoError(t, w.handle(s, "acme").Update(ctx, func(x *tenantstore.Tx) error {
				for i := range records {
					k := fmt.Sprintf("k%04d", i)
					want[k] = "old"
					if _, err := x.Put("c", []byte(k), []byte("old")); err != nil {
						return err
					}
				}
				return nil
			}))
			before := w.info(s, "acme")
			s = cut(t, w, s, p)
			copied := p.Puts(2)
			require.Positive(t, copied)
			require.Less(t, copied, records)
			written := 0
			write := func(s *tenantstore.Store, i int) {
				c, k := w.handle(s, "acme").Collection("c"), fmt.Sprintf("k%04d", i)
				_, err := c.Put(ctx, []byte(k), []byte("new"))
				require.NoError(t, err)
				want[k] = "new"
				gone := fmt.Sprintf("k%04d", i+1)
				require.NoError(t, c.Delete(ctx, []byte(gone)))
				delete(want, gone)
				written++
			}
			if s != nil {
				assert.Equal(t, before.Generation, w.info(s, "acme").Generation)
				write(s, 7)
				write(s, records-7)
				require.NoError(t, s.Close(ctx))
			}
			gate := p.Hold(2) // the first transaction of what goes on
			s = w.open()
			write(s, 9)
			write(s, records-9)
			<-p.Held()
			write(s, 11)
			gate <- nil
			require.NoError(t, s.Recover(ctx, w.operator(s)))
			assert.EqualValues(t, 2, w.info(s, "acme").Generation)
			require.Equal(t, want, contents(t, w, s))
			// Each record once, and what was written since at most once more.
			assert.LessOrEqual(t, p.Puts(2), records+written)
			assert.GreaterOrEqual(t, p.Puts(2), records-written)
			oneKey(t, w, s, w.handle(s, "acme").UID())
			_, err := w.handle(s, "acme").Verify(ctx)
			require.NoError(t, err)
		})
	}
}

// rotateUntil rotates acme's key and gives the gate of the copy's n-th
// transaction to the last of then (those before it leave the gate shut); the
// rotation is cut.
func rotateUntil(t *testing.T, w *world, s *tenantstore.Store, p *powercut.Power, ctx context.Context, n int, then ...func(chan<- error)) {
	done := make(chan error, 1)
	gate := p.Hold(2)
	go func() { done <- s.RotateKey(ctx, w.operator(s), "acme") }()
	for range n {
		<-p.Held()
		next := p.Hold(2)
		gate <- nil
		gate = next
	}
	<-p.Held()
	for _, f := range then {
		f(gate)
	}
	require.Error(t, <-done)
}
