package tlsconn

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const defaultHandshakeTimeout = 5 * time.Second

// Limits bound what a far end can make this end do. A zero field means the
// default; Unlimited takes the bound off where the comment allows it.
type Limits struct {
	HandshakeTimeout time.Duration // 5 s
	MaxHandshakes    int           // half-open handshakes at once; 64
	// HandshakesPerIP is the rate at which one source address may begin
	// handshakes, per second, with bursts of four times as many; 10. May be Unlimited.
	HandshakesPerIP int
	MaxTunnels      int           // tunnels at once; 10000
	MaxStreams      int           // concurrent streams of one tunnel that the far end opened; 256
	StreamWindow    int           // bytes one stream may have unread; 1 MiB, at least 256 KiB
	TunnelMemory    int           // most that MaxStreams × StreamWindow may be; 256 MiB
	OpenTimeout     time.Duration // for a stream's first frame and its answer; 5 s
	AttestTimeout   time.Duration // for one evidence exchange; 60 s
	IdleTimeout     time.Duration // a flow that moves no byte; 15 min
	MaxFlowAge      time.Duration // 24 h

	// Caps per node, over all of its tunnels. All may be Unlimited.
	FlowsPerSecond int   // new flows; 100, in bursts of twice as many
	BytesPerSecond int64 // both ways together; 128 MiB
	BytesPerDay    int64 // both ways together, per UTC day; 100 GiB
	Destinations   int   // distinct destinations within ten minutes (scans); 64

	// PacketsPerSecond is for each UDP flow and each way, in bursts of as many;
	// more are dropped and counted in the flow's record; 2000. May be Unlimited.
	PacketsPerSecond int

	// Caps per dialled destination (address and port), over all nodes together,
	// so that a captured fleet is no weapon. Both may be Unlimited.
	FlowsPerDestination int // at once; 1024
	RatePerDestination  int // new flows a second; 200, in bursts of twice as many
}

func (l Limits) complete() (Limits, error) {
	def(&l.HandshakeTimeout, defaultHandshakeTimeout)
	def(&l.MaxHandshakes, 64)
	def(&l.HandshakesPerIP, 10)
	def(&l.MaxTunnels, 10000)
	def(&l.MaxStreams, 256)
	def(&l.StreamWindow, 1<<20)
	def(&l.TunnelMemory, 256<<20)
	def(&l.OpenTimeout, 5*time.Second)
	def(&l.AttestTimeout, 60*time.Second)
	def(&l.IdleTimeout, 15*time.Minute)
	def(&l.MaxFlowAge, 24*time.Hour)
	def(&l.FlowsPerSecond, 100)
	def(&l.BytesPerSecond, 128<<20)
	def(&l.BytesPerDay, 100<<30)
	def(&l.Destinations, 64)
	def(&l.PacketsPerSecond, 2000)
	def(&l.FlowsPerDestination, 1024)
	def(&l.RatePerDestination, 200)
	if l.HandshakeTimeout < 0 || l.MaxHandshakes < 0 || l.MaxTunnels < 0 || l.MaxStreams < 0 || l.OpenTimeout < 0 || l.AttestTimeout < 0 || l.IdleTimeout < 0 || l.MaxFlowAge < 0 {
		return l, fmt.Errorf("tlsconn: limits: only HandshakesPerIP and the caps per node may be Unlimited")
	}
	if l.StreamWindow < 256<<10 {
		return l, fmt.Errorf("tlsconn: limits: StreamWindow of %d bytes, at least 256 KiB", l.StreamWindow)
	}
	if l.TunnelMemory/l.StreamWindow < l.MaxStreams {
		return l, fmt.Errorf("tlsconn: limits: MaxStreams %d × StreamWindow %d is more than TunnelMemory %d", l.MaxStreams, l.StreamWindow, l.TunnelMemory)
	}
	return l, nil
}

func def[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// destinationWindow is over how long distinct destinations are counted.
const destinationWindow = 10 * time.Minute

// nodeCaps counts what one node uses, over all of its tunnels and reconnects.
type nodeCaps struct {
	l     Limits
	flows *rate.Limiter // nil: unlimited
	bytes *rate.Limiter // nil: unlimited

	mu    sync.Mutex
	day   int64
	used  int64
	dests map[string]time.Time
	rules map[string]int
	last  time.Time
}

// capTable holds the caps of all nodes. It is bounded: when it is full, the
// node that was idle the longest is forgotten.
type capTable struct {
	mu    sync.Mutex
	l     Limits
	nodes map[ID]*nodeCaps
}

func (t *capTable) get(id ID, now time.Time) *nodeCaps {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.nodes == nil {
		t.nodes = map[ID]*nodeCaps{}
	}
	c := t.nodes[id]
	if c == nil {
		if len(t.nodes) >= 2*t.l.MaxTunnels {
			t.evict()
		}
		c = &nodeCaps{l: t.l, dests: map[string]time.Time{}, rules: map[string]int{}}
		if n := t.l.FlowsPerSecond; n > 0 {
			c.flows = rate.NewLimiter(rate.Limit(n), 2*n)
		}
		if n := t.l.BytesPerSecond; n > 0 {
			c.bytes = rate.NewLimiter(rate.Limit(n), int(max(n/4, smallBuffer)))
		}
		t.nodes[id] = c
	}
	c.mu.Lock()
	c.last = now
	c.mu.Unlock()
	return c
}

func (t *capTable) evict() {
	var oldest ID
	var when time.Time
	for id, c := range t.nodes {
		c.mu.Lock()
		busy, last := len(c.rules) > 0, c.last
		c.mu.Unlock()
		if !busy && (oldest.IsZero() || last.Before(when)) {
			oldest, when = id, last
		}
	}
	if !oldest.IsZero() {
		delete(t.nodes, oldest)
	}
}

// admit takes a place for a flow under a rule; the returned function gives it back.
func (c *nodeCaps) admit(dest, rule string, maxFlows int, now time.Time) (func(), error) {
	if c.flows != nil && !c.flows.AllowN(now, 1) {
		return nil, fmt.Errorf("%w: more than %d new flows a second", ErrLimit, c.l.FlowsPerSecond)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.overDay(now, 0) {
		return nil, fmt.Errorf("%w: %d bytes a day are used up", ErrLimit, c.l.BytesPerDay)
	}
	if maxFlows > 0 && c.rules[rule] >= maxFlows {
		return nil, fmt.Errorf("%w: %d flows at once under this rule", ErrLimit, maxFlows)
	}
	if _, known := c.dests[dest]; !known && c.l.Destinations > 0 && len(c.dests) >= c.l.Destinations {
		for d, seen := range c.dests {
			if now.Sub(seen) > destinationWindow {
				delete(c.dests, d)
			}
		}
		if len(c.dests) >= c.l.Destinations {
			return nil, fmt.Errorf("%w: more than %d distinct destinations within %s", ErrLimit, c.l.Destinations, destinationWindow)
		}
	}
	c.dests[dest] = now
	c.rules[rule]++
	var once sync.Once
	return func() {
		once.Do(func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.rules[rule]--; c.rules[rule] <= 0 {
				delete(c.rules, rule)
			}
		})
	}, nil
}

// count adds n bytes and reports whether the day's cap still holds.
func (c *nodeCaps) count(n int) bool {
	if c.l.BytesPerDay < 0 {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.overDay(time.Now(), int64(n))
}

var errDayUsedUp = fmt.Errorf("%w: the bytes of this day are used up", ErrLimit)

// pay takes n bytes off the caps; wait gives a context to wait for the rate with.
func (c *nodeCaps) pay(n int, wait func() (context.Context, context.CancelFunc)) error {
	if !c.count(n) {
		return errDayUsedUp
	}
	if c.bytes == nil || c.bytes.AllowN(time.Now(), n) {
		return nil
	}
	ctx, cancel := wait()
	defer cancel()
	for n > 0 {
		part := min(n, c.bytes.Burst())
		if err := c.bytes.WaitN(ctx, part); err != nil {
			return fmt.Errorf("%w: %w", ErrLimit, err)
		}
		n -= part
	}
	return nil
}

// afford is pay for who can't wait: it takes n bytes off, or nothing.
func (c *nodeCaps) afford(n int) bool {
	return (c.bytes == nil || c.bytes.AllowN(time.Now(), n)) && c.count(n)
}

// quantum is how many bytes are paid for and sent at a time.
func (c *nodeCaps) quantum() int {
	if c.bytes == nil {
		return bulkBuffer
	}
	return min(bulkBuffer, c.bytes.Burst())
}

// overDay is called with the lock held.
func (c *nodeCaps) overDay(now time.Time, n int64) bool {
	if c.l.BytesPerDay < 0 {
		return false
	}
	if day := now.Unix() / 86400; day != c.day {
		c.day, c.used = day, 0
	}
	c.used += n
	return c.used >= c.l.BytesPerDay
}
