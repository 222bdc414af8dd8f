package tenantstore_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/tenantstore"
)

// TestFullDiskLosesNothing fills a disk of four megabytes with a tenant's
// records until a write is refused: by the quota of the medium, or because the
// audit log can't be written any more. What was acknowledged is there, also
// after a restart with room again, and the store goes on then.
func TestFullDiskLosesNothing(t *testing.T) {
	testenv.Root(t)
	w, ctx := newWorld(t), t.Context()
	disk := filepath.Join(w.dir, "store")
	require.NoError(t, os.Mkdir(disk, 0o700))
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=4m"); err != nil {
		testenv.Missing(t, "a mount of one's own: "+err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	s := w.open()
	c := w.tenant(s, "acme").Collection("c")
	_, err := c.Put(ctx, []byte("first"), nil)
	require.NoError(t, err)
	acked := 0
	for {
		_, err = c.Put(ctx, fmt.Appendf(nil, "k%04d", acked), make([]byte, 20_000))
		if err != nil {
			break
		}
		acked++
		require.Less(t, acked, 1000)
	}
	require.True(t, errorsIsAny(err, tenantstore.ErrQuota, tenantstore.ErrAudit), "%v", err)
	require.NotErrorIs(t, err, tenantstore.ErrTampered)
	assert.Positive(t, acked)
	_ = s.Close(ctx) // what it can't write it says
	require.NoError(t, unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT, "size=16m"))
	s = w.open()
	c = w.handle(s, "acme").Collection("c")
	n := 0
	for r, err := range c.Scan(ctx, tenantstore.Range{Prefix: []byte("k")}) {
		require.NoError(t, err)
		require.Len(t, r.Value, 20_000)
		n++
	}
	assert.GreaterOrEqual(t, n, acked)
	_, err = c.Put(ctx, []byte("more"), []byte("more"))
	require.NoError(t, err)
	require.NoError(t, s.Close(ctx))
}

// TestClockThatGoesBackwards sets the clock back by a year while the store is
// open, and a thousand writes later again: a revoked key is not used longer for
// it, versions don't come again, and nobody is locked out for ever.
func TestClockThatGoesBackwards(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	var back atomic.Int64
	w.clock = func() time.Time { return time.Now().Add(-time.Duration(back.Load())) }
	s := w.open()
	a := w.tenant(s, "acme")
	c := a.Collection("c")
	seen := map[uint64]bool{}
	put := func() {
		v, err := c.Put(ctx, []byte("k"), nil)
		require.NoError(t, err)
		require.False(t, seen[v], "a version came again")
		seen[v] = true
	}
	put()
	back.Store(int64(30 * time.Minute)) // certificates are an hour old
	for range 200 {
		put()
	}
	// What unwrapped the key is half an hour in the future: it is asked again.
	id := w.info(s, "acme").KeyID
	back.Store(int64(40 * time.Minute))
	require.NoError(t, w.keys.Destroy(ctx, id))
	_, err := c.Get(ctx, []byte("k"))
	require.ErrorIs(t, err, tenantstore.ErrKeyDestroyed)
}

func errorsIsAny(err error, targets ...error) bool {
	for _, x := range targets {
		if errors.Is(err, x) {
			return true
		}
	}
	return false
}
