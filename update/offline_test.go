package update_test

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/repository"
)

// A stick that lay in a drawer is refused, unless both the node's policy and
// the root say for how long it may be used; the shorter counts.
func TestExpiredStickNeedsBothPolicies(t *testing.T) {
	const day = 24 * time.Hour
	for name, tc := range map[string]struct {
		root, node time.Duration
		age        int // days; the timestamp is good for 7, the snapshot for 30, the targets for 365
		want       error
	}{
		"fresh":                       {0, 0, 5, nil},
		"expired":                     {0, 0, 8, update.ErrExpired},
		"only the node allows it":     {0, 90 * day, 8, update.ErrExpired},
		"only the root allows it":     {90 * day, 0, 8, update.ErrExpired},
		"both allow it":               {90 * day, 90 * day, 90, nil},
		"longer than the root allows": {30 * day, 365 * day, 38, update.ErrExpired},
		"longer than the node allows": {365 * day, 30 * day, 38, update.ErrExpired},
		"targets have no grace":       {5 * 365 * day, 5 * 365 * day, 366, update.ErrExpired},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPublisher(t, func(c *repository.Config) { c.OfflineGrace = tc.root })
			p.release("2.0", 1, image("2.0", 1<<10))
			d := newDevice(t, p, func(c *update.ClientConfig, _ *update.InstallerConfig) { c.OfflineGrace = tc.node })
			d.now = p.now.AddDate(0, 0, tc.age)
			st, err := d.client.Refresh(t.Context())
			if tc.want != nil {
				require.ErrorIs(t, err, tc.want)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, tc.age > 7, st.Stale)
			_, err = d.client.Select(t.Context(), d.node())
			require.NoError(t, err)
			d.now = d.now.AddDate(0, 0, 30) // the grace ends while the client lives
			_, err = d.client.Select(t.Context(), d.node())
			require.ErrorIs(t, err, update.ErrExpired)
		})
	}
	p := newPublisher(t)
	p.edit(func(tx *repository.Tx) error { return tx.SetOfflineGrace(90 * day) })
	p.release("2.0", 1, image("2.0", 1<<10))
	d := newDevice(t, p, func(c *update.ClientConfig, _ *update.InstallerConfig) { c.OfflineGrace = 90 * day })
	d.now = p.now.AddDate(0, 0, 20)
	require.NoError(t, d.install())
	for _, wrong := range []time.Duration{-1, 50 * 365 * day} {
		require.Error(t, p.repo.Edit(t.Context(), func(tx *repository.Tx) error { return tx.SetOfflineGrace(wrong) }, p.all()...))
	}
}

func TestOldStickIsARollbackThoughItsGraceHolds(t *testing.T) {
	const day = 24 * time.Hour
	p := newPublisher(t, func(c *repository.Config) { c.OfflineGrace = 90 * day })
	p.release("2.0", 1, image("2.0", 1<<10))
	old := t.TempDir()
	p.copyTo(old)
	p.release("3.0", 2, image("3.0", 1<<10))
	d := newDevice(t, p, func(c *update.ClientConfig, _ *update.InstallerConfig) { c.OfflineGrace = 90 * day })
	require.NoError(t, d.install())
	d.reboot()
	require.NoError(t, d.in.Confirm(t.Context()))
	d.now = d.now.AddDate(0, 0, 10)
	d.cfg.Images, d.cfg.Dir = update.FSSource(os.DirFS(old)), t.TempDir() // with an empty cache
	d.restart()
	_, err := d.client.Refresh(t.Context())
	require.ErrorIs(t, err, update.ErrRollback)
}
