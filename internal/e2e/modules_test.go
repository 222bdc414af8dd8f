package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/city"
	"github.com/trusttree/trusttree/moduleid"
)

// patient is how long these tests wait for what takes a second or two.
const patient = 90 * time.Second

// TestModuleLists revokes a class of modules in a running city: the owner's new
// list is in force at the cloud and at the node by itself, an older one is
// refused everywhere, and neither end forgets it when it starts anew, the node
// without its cloud either.
func TestModuleLists(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c, err := city.Found(ctx, city.Config{Dir: t.TempDir(), Bin: build(t), Tenants: tenants[:1], EditCloud: func(_ string, cfg map[string]any) {
		cfg["connectors"] = map[string]string{"bay-1": "camera"}
		cfg["optional_connectors"] = map[string]string{"bay-2": "air"}
	}})
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			keepLogs(t, c)
		}
		assert.NoError(t, c.Close())
	})
	must(t, c.StartCloud(ctx, 0))
	must(t, c.CreateTenants(ctx))
	n, err := c.NewNode(ctx, "node-1", func(cfg map[string]any) {
		cfg["modules"].([]map[string]any)[1]["optional"] = true
	})
	must(t, err)
	must(t, c.Owner.Assign(ctx, n.Device))
	must(t, n.Start(ctx))
	await := func(from int, p *city.Proc, pairs ...string) city.Record {
		t.Helper()
		rec, err := p.Await(ctx, from, patient, pairs...)
		must(t, err)
		return rec
	}

	// says waits for a record of which an attribute says something; others of its
	// kind may come before it, such as of a proof that another one overtook.
	says := func(from int, p *city.Proc, key, text string, pairs ...string) {
		t.Helper()
		require.Eventually(t, func() bool {
			for _, rec := range p.Records(from, pairs...) {
				if strings.Contains(rec.Str(key), text) {
					return true
				}
			}
			return false
		}, patient, 20*time.Millisecond, "%v: %s", pairs, text)
	}

	// A connector that may be empty is.
	mark := n.Proc.Mark()
	n.PullAir()
	says(mark, n.Proc, "detail", "empty, as they may be: bay-2", "event", "link.proven", "link", "modules")
	await(mark, n.Proc, "event", "link.proven", "link", "attested")

	// The owner revokes all cameras.
	cloud := c.Clouds[0].Proc
	markCloud, mark := cloud.Mark(), n.Proc.Mark()
	before := time.Now()
	must(t, c.Owner.ReviseModules(ctx, 2, moduleid.ID(c.CameraCA.Certificate)))
	says(markCloud, cloud, "reason", "list 2 names the key", "event", "attest.refused", "node", n.Device)
	atCloud := time.Since(before)
	says(mark, n.Proc, "detail", "list 2 names the key", "event", "link.lost", "link", "modules")
	t.Logf("refused %d ms after the operator's call at the cloud, %d ms at the node", atCloud.Milliseconds(), time.Since(before).Milliseconds())

	// An older list is refused.
	require.ErrorContains(t, c.Owner.ReviseModules(ctx, 1), "rolled back")
	// Another cloud directory does not take it back: what the store holds counts.
	cloud.Kill()
	must(t, c.StartCloud(ctx, 0))
	require.ErrorContains(t, c.Owner.ReviseModules(ctx, 1), "sequence 1 is offered, 2 is in force")

	// The node remembers it, without its cloud.
	c.Clouds[0].Proc.Kill()
	_, err = n.Reboot(ctx, slotLogs)
	must(t, err)
	must(t, n.Run())
	says(0, n.Proc, "detail", "list 2 names the key", "event", "link.lost", "link", "modules")
	// A damaged one is set aside, and fetched again.
	n.Proc.Kill()
	kept := n.Path("state", "module-revocations")
	must(t, os.WriteFile(kept, []byte("{"), 0o600))
	must(t, c.StartCloud(ctx, 0))
	_, err = n.Reboot(ctx, slotLogs)
	must(t, err)
	must(t, n.Run())
	rec := await(0, n.Proc, "event", "modules.list-damaged")
	assert.Equal(t, kept, rec.Str("file"))
	says(0, n.Proc, "detail", "list 2 names the key", "event", "link.lost", "link", "modules")
	assert.FileExists(t, kept+".bad")

	// The next list gives the cameras back, and all comes back by itself.
	mark = n.Proc.Mark()
	must(t, c.Owner.ReviseModules(ctx, 3))
	await(mark, n.Proc, "event", "link.proven", "link", "modules")
	await(mark, n.Proc, "event", "link.proven", "link", "attested")
	data, err := os.ReadFile(kept)
	must(t, err)
	assert.NotEmpty(t, data, fmt.Sprint(filepath.Base(kept)))
}

// TestTPMResetBesideTheMachine: who resets the TPM of a running node, to tell it
// the measurements of another boot, is noticed: the kernel did not start anew.
func TestTPMResetBesideTheMachine(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c, err := city.Found(ctx, city.Config{Dir: t.TempDir(), Bin: build(t), Tenants: tenants[:1]})
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			keepLogs(t, c)
		}
		assert.NoError(t, c.Close())
	})
	must(t, c.StartCloud(ctx, 0))
	n, err := c.NewNode(ctx, "node-1", nil)
	must(t, err)
	must(t, n.Start(ctx, "attested"))
	_, err = n.Reboot(ctx, slotLogs)
	must(t, err)
	must(t, n.Start(ctx, "attested")) // an ordinary boot
	bootID, err := os.ReadFile(n.Path("boot-id"))
	must(t, err)
	mark := c.Clouds[0].Proc.Mark()
	_, err = n.Reboot(ctx, slotLogs)
	must(t, err)
	must(t, os.WriteFile(n.Path("boot-id"), bootID, 0o600))
	must(t, n.Run())
	rec, err := c.Clouds[0].Proc.Await(ctx, mark, patient, "event", "attest.refused", "node", n.Device)
	must(t, err)
	assert.Contains(t, rec.Str("reason"), "something reset the TPM")
}
