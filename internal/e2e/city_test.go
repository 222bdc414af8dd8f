package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/city"
	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/internal/testpg"
	"github.com/trusttree/trusttree/update/manifest"
)

var tenants = []city.Tenant{{Name: "lighting", Stream: "lamp"}, {Name: "environment", Stream: "no2"}, {Name: "traffic", Stream: "counter"}}

// logs of the slots: slot b holds what was installed first.
var slotLogs = map[string][]byte{"a": city.GoodBoot, "b": city.UpdatedBoot}

func build(t *testing.T) string {
	dir := filepath.Join(t.TempDir(), "bin")
	must(t, os.MkdirAll(dir, 0o755))
	must(t, city.Build(t.Context(), dir))
	return dir
}

// sensors leaves numbered records at a node, again and again across restarts,
// as a module process would: a record counts when the node acknowledged it.
type sensors struct {
	node   *city.Node
	acked  map[string]uint64 // by stream: all numbers up to this one are acknowledged
	paused atomic.Bool
}

func (s *sensors) run(ctx context.Context) {
	for ctx.Err() == nil {
		conn, err := s.node.Sensor()
		for err == nil && ctx.Err() == nil {
			for _, t := range tenants {
				next := s.acked[t.Stream] + 1
				value := map[string]any{"node": s.node.Name, "stream": t.Stream, "n": next}
				if err = conn.Leave(t.Stream, next, value); err != nil {
					break
				}
				s.acked[t.Stream] = next
			}
			time.Sleep(100 * time.Millisecond)
			for s.paused.Load() && ctx.Err() == nil {
				time.Sleep(50 * time.Millisecond)
			}
		}
		if conn != nil {
			_ = conn.Close()
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// TestCity runs two instances of the cloud on one PostgreSQL and ten nodes, all
// in network namespaces: everybody enrols and attests, telemetry of three
// tenants flows, a release rolls out in waves, a bad one heals, links are cut,
// and instances and nodes are killed at random. At the end every acknowledged
// record is in its own tenant's instance exactly once.
func TestCity(t *testing.T) {
	testenv.Tool(t, "initdb", "postgresql")
	if !isolated(t) {
		return
	}
	chaos := time.Duration(testenv.N(90, 600)) * time.Second
	if s := os.Getenv("TRUSTTREE_CHAOS_SECONDS"); s != "" {
		d, err := time.ParseDuration(s + "s")
		must(t, err)
		chaos = d
	}
	ctx := t.Context()
	pg := testpg.Start(t, "max_connections=200", "fsync=on")
	net := newNetwork(t)
	const nodeCount = 10
	net.add(t, "cloud-1", 0)
	net.add(t, "cloud-2", 1)
	for i := range nodeCount {
		net.add(t, fmt.Sprintf("node-%d", i+1), 10+i)
	}
	net.add(t, "operator", 5)
	c, err := city.Found(ctx, city.Config{
		Dir: t.TempDir(), Bin: build(t), Tenants: tenants, Postgres: pg.Admin, Clouds: 2,
		Host: net.host, Command: net.command, Listen: net.listen, Dial: net.dial("operator"),
		EditCloud: func(_ string, cfg map[string]any) { cfg["attest_seconds"] = 30 },
	})
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			keepLogs(t, c)
		}
		assert.NoError(t, c.Close())
	})
	for i := range c.Clouds {
		must(t, c.StartCloud(ctx, i))
	}
	must(t, c.CreateTenants(ctx))

	// Enrol, attest, open the volumes.
	start := time.Now()
	nodes, devices := make([]*city.Node, nodeCount), make([]string, nodeCount)
	for i := range nodes {
		nodes[i], err = c.NewNode(ctx, fmt.Sprintf("node-%d", i+1), func(cfg map[string]any) {
			for _, s := range cfg["streams"].([]map[string]any) {
				s["every_seconds"] = 0 // records come from the sensors alone
			}
		})
		must(t, err)
		devices[i] = nodes[i].Device
	}
	must(t, c.Owner.Assign(ctx, devices...))
	for _, n := range nodes {
		must(t, n.Run())
	}
	for _, n := range nodes {
		for _, l := range city.Links {
			_, err := n.Proc.Await(ctx, 0, 90*time.Second, "event", "link.proven", "link", l)
			must(t, err)
		}
	}
	t.Logf("%d nodes enrolled, attested and unlocked after %.1f s", nodeCount, time.Since(start).Seconds())

	all := make([]*sensors, nodeCount)
	sensing, stopSensing := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for i, n := range nodes {
		all[i] = &sensors{node: n, acked: map[string]uint64{}}
		wg.Go(func() { all[i].run(sensing) })
	}
	defer func() { stopSensing(); wg.Wait() }()

	// Attacks, while all is well.
	refused := attacks(t, c, nodes, net)

	// A release in waves: half of the fleet first.
	seedWaves := manifest.Rollout{Nodes: devices[:5]}
	must(t, c.Publish(ctx, "1.1.0", 1, city.UpdatedBoot, seedWaves))
	awaitInstalled(t, nodes[:5], "1.1.0")
	for _, n := range nodes[5:] {
		assert.Empty(t, n.Proc.Records(0, "event", "update.armed"), "%s is not in the first wave", n.Name)
	}
	must(t, c.SetRollout(ctx, "1.1.0", city.Everybody()))
	awaitInstalled(t, nodes, "1.1.0")
	rebootAll(t, nodes, slotLogs)
	for _, n := range nodes {
		_, err := n.Proc.Await(ctx, 0, 120*time.Second, "event", "link.proven", "link", "update")
		must(t, err)
	}
	t.Logf("release 1.1.0 in two waves: committed by all")

	// A bad release: it boots into a state that nobody approved, so neither
	// volume nor tunnel comes up, and the trial ends where it began.
	must(t, c.Publish(ctx, "1.2.0", 2, city.GoodBoot, manifest.Rollout{Nodes: devices[:1]}))
	awaitInstalled(t, nodes[:1], "1.2.0")
	bad := nodes[0]
	slots := map[string][]byte{"a": city.TamperedBoot, "b": city.UpdatedBoot}
	healed := false
	for try := 0; try < 6 && !healed; try++ {
		slot, err := bad.Reboot(ctx, slots)
		must(t, err)
		must(t, bad.Run())
		if slot == "a" {
			_, err = bad.Proc.Await(ctx, 0, 60*time.Second, "event", "link.lost", "link", "system volume")
			must(t, err)
			continue
		}
		for _, l := range []string{"system volume", "attested", "data volume"} {
			_, err = bad.Proc.Await(ctx, 0, 60*time.Second, "event", "link.proven", "link", l)
			must(t, err)
		}
		healed = true
	}
	assert.True(t, healed, "the node came back to the release that works")
	t.Logf("release 1.2.0 does not boot as approved: taken back")

	// Chaos.
	kills, cuts, reboots := 0, 0, 0
	for end := time.Now().Add(chaos); time.Now().Before(end) && ctx.Err() == nil; {
		i := rand.IntN(nodeCount)
		switch n := nodes[i]; rand.IntN(4) {
		case 0: // an instance dies
			k := rand.IntN(len(c.Clouds))
			c.Clouds[k].Proc.Kill()
			time.Sleep(time.Duration(rand.IntN(3000)) * time.Millisecond)
			must(t, c.StartCloud(ctx, k))
			kills++
		case 1: // a node loses power
			_, err := n.Reboot(ctx, map[string][]byte{"a": city.GoodBoot, "b": city.UpdatedBoot})
			must(t, err)
			must(t, n.Run())
			reboots++
		default: // a link is cut
			name := n.Name
			if rand.IntN(5) == 0 {
				name = "cloud-" + fmt.Sprint(1+rand.IntN(2))
			}
			net.cut(t, name, true)
			time.Sleep(time.Duration(500+rand.IntN(3000)) * time.Millisecond)
			net.cut(t, name, false)
			cuts++
		}
		time.Sleep(time.Duration(rand.IntN(1500)) * time.Millisecond)
	}
	t.Logf("chaos of %v: %d instances and %d nodes killed, %d links cut", chaos, kills, reboots, cuts)

	// Quiet again: all is delivered, and nobody stays behind.
	stopSensing()
	wg.Wait()
	for _, n := range nodes {
		if !n.Proc.Running() {
			_, err := n.Reboot(ctx, map[string][]byte{"a": city.GoodBoot, "b": city.UpdatedBoot})
			must(t, err)
			must(t, n.Run())
		}
	}
	awaitDelivered(t, nodes)
	require.Eventually(t, func() bool {
		var fleet []struct {
			ID, State string
		}
		data, err := c.Owner.Call(ctx, 0, http.MethodGet, "/v1/admin/fleet", nil)
		if err != nil || json.Unmarshal(data, &fleet) != nil {
			return false
		}
		affirming := 0
		for _, n := range fleet {
			if slices.Contains(devices, n.ID) && n.State == "affirming" {
				affirming++
			}
		}
		return affirming == nodeCount
	}, 120*time.Second, time.Second, "every node is affirming, at either instance")

	total := 0
	for _, tenant := range tenants {
		for k := range c.Clouds {
			seen := map[string]int{}
			records, _, err := c.Owner.Records(ctx, k, tenant.Name, tenant.Stream)
			must(t, err)
			for _, r := range records {
				seen[string(r.Value)]++
			}
			want := 0
			for _, s := range all {
				for i := uint64(1); i <= s.acked[tenant.Stream]; i++ {
					want++
					value, err := json.Marshal(map[string]any{"node": s.node.Name, "stream": tenant.Stream, "n": i})
					must(t, err)
					if got := seen[string(value)]; got != 1 {
						t.Errorf("tenant %s, %s: %d times", tenant.Name, value, got)
					}
					delete(seen, string(value))
				}
			}
			// What was not acknowledged may have arrived, once.
			for value, n := range seen {
				assert.Equal(t, 1, n, value)
				assert.Contains(t, value, `"stream":"`+tenant.Stream+`"`)
			}
			if k == 0 {
				total += want
			}
		}
	}
	t.Logf("%d acknowledged records, each once in its own tenant's instance, at both instances", total)
	for name, why := range refused {
		t.Logf("refused and logged: %s: %s", name, why)
	}
}

// awaitDelivered waits until every node has delivered its spool. However long
// that takes on this machine: it fails when nothing leaves any of them.
func awaitDelivered(t *testing.T, nodes []*city.Node) {
	const patience = 90 * time.Second // a node pauses for up to a minute after failures
	least, since := -1, time.Now()
	for time.Since(since) < patience {
		var waiting []string
		for _, n := range nodes {
			files, err := filepath.Glob(n.Path("state", "spool", "*", "*.age"))
			must(t, err)
			waiting = append(waiting, files...)
		}
		if len(waiting) == 0 {
			return
		}
		if least < 0 || len(waiting) < least {
			least, since = len(waiting), time.Now()
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Fatalf("%d batches are in the spools, and none left in %v", least, patience)
}

// attacks tries what a captured node would, and returns why each was refused,
// from the logs.
func attacks(t *testing.T, c *city.City, nodes []*city.Node, net *network) map[string]string {
	out := map[string]string{}
	ctx := t.Context()
	// A module that is not the city's, then the genuine one again.
	n := nodes[3]
	must(t, n.PlugCamera(ctx, c.ForeignCA))
	out["foreign module"] = awaitCloud(t, c, "event", "attest.refused", "node", n.Device)
	must(t, n.PlugCamera(ctx, c.CameraCA))
	mark := n.Proc.Mark()
	_, err := n.Proc.Await(ctx, mark, 90*time.Second, "event", "link.proven", "link", "attested")
	must(t, err)
	// A node that is revoked at one instance loses its tunnel at both.
	n = nodes[len(nodes)-1]
	mark = n.Proc.Mark()
	before := time.Now()
	_, err = c.Owner.Call(ctx, 1, http.MethodPost, "/v1/admin/nodes/"+n.Device+"/revoke", nil)
	must(t, err)
	rec, err := n.Proc.Await(ctx, mark, 10*time.Second, "event", "link.lost", "link", "tunnel")
	must(t, err)
	out["revoked node"] = fmt.Sprintf("tunnel gone after %d ms: %s", time.Since(before).Milliseconds(), rec.Str("detail"))
	_, err = c.Owner.Call(ctx, 0, http.MethodPost, "/v1/admin/nodes/"+n.Device+"/release", nil)
	must(t, err)
	// It enrols again, with a new token: nothing of before counts.
	must(t, n.Renew(ctx))
	_, err = n.Reboot(ctx, slotLogs)
	must(t, err)
	must(t, n.Run())
	for _, l := range []string{"identity", "attested"} {
		_, err = n.Proc.Await(ctx, 0, 60*time.Second, "event", "link.proven", "link", l)
		must(t, err)
	}
	return out
}

// awaitCloud waits until one of the instances logs something.
func awaitCloud(t *testing.T, c *city.City, pairs ...string) string {
	var reason string
	require.Eventually(t, func() bool {
		for _, cloud := range c.Clouds {
			if recs := cloud.Proc.Records(0, pairs...); len(recs) > 0 {
				reason = recs[len(recs)-1].Str("reason")
				return true
			}
		}
		return false
	}, 60*time.Second, 100*time.Millisecond, "%v", pairs)
	return reason
}

func awaitInstalled(t *testing.T, nodes []*city.Node, version string) {
	for _, n := range nodes {
		_, err := n.Proc.Await(t.Context(), 0, 120*time.Second, "event", "update.armed", "version", version)
		must(t, err)
	}
}

func rebootAll(t *testing.T, nodes []*city.Node, logs map[string][]byte) {
	for _, n := range nodes {
		slot, err := n.Reboot(t.Context(), logs)
		must(t, err)
		assert.Equal(t, "b", slot, n.Name)
		must(t, n.Run())
	}
}

// keepLogs copies the logs of all processes to where they outlive the test.
func keepLogs(t *testing.T, c *city.City) {
	dir, err := os.MkdirTemp("", "trusttree-e2e-")
	if err != nil {
		return
	}
	logs, _ := filepath.Glob(c.Path("*.log"))
	for _, name := range logs {
		if data, err := os.ReadFile(name); err == nil {
			_ = os.WriteFile(filepath.Join(dir, filepath.Base(name)), data, 0o600)
		}
	}
	t.Logf("logs are in %s", dir)
}
