package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/internal/city"
)

// sealed is one batch of telemetry as a node spools it.
func sealed(stream, id string, records int, to age.Recipient) ([]byte, error) {
	b := wire.Batch{Version: 1, ID: id, Stream: stream}
	now := time.Now().UTC()
	for i := range records {
		b.Records = append(b.Records, wire.Sample{Time: now.Add(time.Duration(i)), Value: fmt.Appendf(nil, `{"lux":%d,"celsius":21.5,"node":"streetlight"}`, i)})
	}
	plain, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, to)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(plain); err != nil {
		return nil, err
	}
	err = w.Close()
	return out.Bytes(), err
}

// BenchmarkTelemetry measures records that the real cloud process acknowledges
// as durable, in batches of 100 over tunnels, for 100 tenants. The nodes run on
// the same processors; what they spool was sealed before.
func BenchmarkTelemetry(b *testing.B) {
	const tenantCount, perBatch, nodeCount = 100, 100, 8
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	bin := filepath.Join(b.TempDir(), "bin")
	require.NoError(b, os.MkdirAll(bin, 0o755))
	require.NoError(b, city.Build(ctx, bin))
	var all []city.Tenant
	for i := range tenantCount {
		all = append(all, city.Tenant{Name: fmt.Sprintf("tenant-%d", i), Stream: fmt.Sprintf("stream-%d", i)})
	}
	c, err := city.Found(ctx, city.Config{Dir: b.TempDir(), Bin: bin, Tenants: all, EditCloud: func(_ string, cfg map[string]any) {
		cfg["connectors"] = map[string]string{}
		cfg["attest_seconds"] = 3600
	}})
	require.NoError(b, err)
	defer func() { require.NoError(b, c.Close()) }()
	require.NoError(b, c.StartCloud(ctx, 0))
	require.NoError(b, c.CreateTenants(ctx))
	boot, err := wire.LoadBootstrap(filepath.Join(c.Clouds[0].State, "bootstrap.json"))
	require.NoError(b, err)
	to, err := age.ParseHybridRecipient(boot.SpoolTo)
	require.NoError(b, err)
	var nodes []*lightNode
	var devices []string
	for range nodeCount {
		n, err := newLightNode(ctx, c)
		require.NoError(b, err)
		nodes, devices = append(nodes, n), append(devices, n.node.Device().String())
	}
	require.NoError(b, c.Owner.Assign(ctx, devices...))
	batches := make([][]byte, b.N)
	for i := range batches {
		batches[i], err = sealed(all[i%tenantCount].Stream, fmt.Sprintf("batch-%d", i), perBatch, to)
		require.NoError(b, err)
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for _, n := range nodes {
		for range 4 { // streams of one node are delivered side by side
			wg.Go(func() {
				for {
					i := int(next.Add(1)) - 1
					if i >= len(batches) {
						return
					}
					if err := n.post(ctx, wire.ServiceIngest, "/v1/ingest", batches[i]); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N*perBatch)/b.Elapsed().Seconds(), "records/s")
	b.Logf("bar: at least 10,000 records/s; cloud peak memory %s", c.Clouds[0].Proc.PeakRSS())
}
