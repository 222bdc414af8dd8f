package tenantstore_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tenantstore"
)

// BenchmarkNoisyNeighbour prints the latency of one quiet tenant's durable puts
// and gets, alone and beside a tenant that writes with 16 goroutines as fast as
// it may, once without and once with a quota on it. Compare the p99 figures.
func BenchmarkNoisyNeighbour(b *testing.B) {
	for _, noise := range []struct {
		name    string
		writers int
		quota   tenantstore.Quota
	}{{"alone", 0, tenantstore.Quota{}}, {"noisy", 16, tenantstore.Quota{OpsPerSec: 1 << 20}}, {"noisy-quota=200", 16, tenantstore.Quota{OpsPerSec: 200, Batch: 100}}} {
		b.Run(noise.name, func(b *testing.B) {
			w := newWorld(b)
			s := w.open()
			quiet := w.tenant(s, "quiet").Collection("c")
			_, err := s.Create(b.Context(), w.operator(s), tenantstore.Spec{ID: "noisy", Quota: noise.quota})
			require.NoError(b, err)
			w.grant(s, tenantstore.Grant{Subject: "service-noisy", Tenant: "noisy", Roles: []tenantstore.Role{tenantstore.RoleWrite}})
			loud := w.handle(s, "noisy").Collection("c")
			var stop atomic.Bool
			var wg sync.WaitGroup
			v := random(benchValue)
			for g := range noise.writers {
				wg.Go(func() {
					for i := 0; !stop.Load(); i++ {
						var q *tenantstore.QuotaError
						if _, err := loud.Put(b.Context(), fmt.Appendf(nil, "%d-%d", g, i), v); errors.As(err, &q) {
							time.Sleep(q.RetryAfter)
						}
					}
				})
			}
			var puts, gets []time.Duration
			for i := 0; b.Loop(); i++ {
				k := benchKey(i % 1000)
				t0 := time.Now()
				_, err := quiet.Put(b.Context(), k, v)
				t1 := time.Now()
				require.NoError(b, err)
				_, err = quiet.Get(b.Context(), k)
				require.NoError(b, err)
				puts, gets = append(puts, t1.Sub(t0)), append(gets, time.Since(t1))
				time.Sleep(time.Millisecond) // a sensor's pace
			}
			stop.Store(true)
			wg.Wait()
			for name, d := range map[string][]time.Duration{"put": puts, "get": gets} {
				slices.Sort(d)
				b.ReportMetric(float64(d[len(d)*99/100])/1e6, name+"-p99-ms")
				b.ReportMetric(float64(d[len(d)/2])/1e6, name+"-p50-ms")
			}
		})
	}
}
