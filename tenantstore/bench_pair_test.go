package tenantstore_test

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trusttree/trusttree/tenantstore"
)

// The paired benchmarks run ours and the bare engine in turn, step by step, so
// that what else the machine does hits both. They report the rate of each, and
// ours as a share of the bare engine's, by the clock and by CPU time of the
// thread, which a busy machine disturbs less. The bars are on the share.

type side struct{ wall, cpu float64 } // seconds

func (s *side) run(b *testing.B, f func() error) {
	c0, w0 := cpuTime(unix.CLOCK_THREAD_CPUTIME_ID), cpuTime(unix.CLOCK_MONOTONIC)
	err := f()
	c1, w1 := cpuTime(unix.CLOCK_THREAD_CPUTIME_ID), cpuTime(unix.CLOCK_MONOTONIC)
	if err != nil {
		b.Fatal(err)
	}
	s.cpu += c1 - c0
	s.wall += w1 - w0
}

func cpuTime(clock int32) float64 {
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		return 0
	}
	return float64(t.Nano()) / 1e9
}

func paired(b *testing.B, bar float64, perStep int, ours, raw func() error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var o, r side
	for i := 0; b.Loop(); i++ {
		if i%2 == 0 {
			o.run(b, ours)
			r.run(b, raw)
		} else {
			r.run(b, raw)
			o.run(b, ours)
		}
	}
	n := float64(b.N * perStep)
	b.ReportMetric(n/o.wall, "store/s")
	b.ReportMetric(n/r.wall, "raw/s")
	b.ReportMetric(r.wall/o.wall, "share")
	b.ReportMetric(r.cpu/o.cpu, "cpu-share")
	b.ReportMetric(bar, "bar")
	b.ReportMetric(1e9*o.cpu/n, "store-cpu-ns")
	b.ReportMetric(1e9*r.cpu/n, "raw-cpu-ns")
}

// BenchmarkShareBatch: transactions of 1,000 records of 200 bytes. Bar: 0.75.
func BenchmarkShareBatch(b *testing.B) {
	const n = 1000
	v := random(benchValue)
	a, db := benchStore(b), openRaw(b)
	i, j := 0, 0
	paired(b, 0.75, n, func() error {
		return a.Update(b.Context(), func(x *tenantstore.Tx) error {
			for range n {
				i++
				if _, err := x.Put("c", benchKey(i), v); err != nil {
					return err
				}
			}
			return nil
		})
	}, func() error {
		j += n
		return db.batch(j, n, v)
	})
}

// BenchmarkShareGet: single gets, at random, of 20,000 records. Bar: 0.8.
func BenchmarkShareGet(b *testing.B) {
	const n, step = 20_000, 100
	v := random(benchValue)
	a, db := benchStore(b), openRaw(b)
	for first := 0; first < n; first += 1000 {
		require.NoError(b, db.batch(first, 1000, v))
		require.NoError(b, a.Update(b.Context(), func(x *tenantstore.Tx) error {
			for i := first; i < first+1000; i++ {
				if _, err := x.Put("c", benchKey(i), v); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	c := a.Collection("c")
	var keys [step]int
	paired(b, 0.8, step, func() error {
		for _, k := range draw(&keys, n) {
			if _, err := c.Get(b.Context(), benchKey(k)); err != nil {
				return err
			}
		}
		return nil
	}, func() error {
		for _, k := range draw(&keys, n) {
			if _, err := db.read(b.Context(), k); err != nil {
				return err
			}
		}
		return nil
	})
}

func draw(keys *[100]int, n int) []int {
	for i := range keys {
		keys[i] = rand.IntN(n)
	}
	return keys[:]
}

// BenchmarkGroupCommit runs 64 durable writers of one tenant and a single one
// in turn and reports how many times the rate 64 have. Bar: 8.
func BenchmarkGroupCommit(b *testing.B) {
	const writers, each = 64, 4
	v := random(benchValue)
	c := benchStore(b).Collection("c")
	var i atomic.Int64
	put := func() {
		if _, err := c.Put(b.Context(), benchKey(int(i.Add(1))), v); err != nil {
			b.Error(err)
		}
	}
	var one, many time.Duration
	for b.Loop() {
		t0 := time.Now()
		for range each {
			put()
		}
		t1 := time.Now()
		var wg sync.WaitGroup
		for range writers {
			wg.Go(func() {
				for range each {
					put()
				}
			})
		}
		wg.Wait()
		one, many = one+t1.Sub(t0), many+time.Since(t1)
	}
	single := float64(b.N*each) / one.Seconds()
	group := float64(b.N*each*writers) / many.Seconds()
	b.ReportMetric(single, "single-put/s")
	b.ReportMetric(group, "group-put/s")
	b.ReportMetric(group/single, "times")
	b.ReportMetric(8, "bar")
}
