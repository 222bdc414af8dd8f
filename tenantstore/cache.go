package tenantstore

import (
	"container/list"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trusttree/trusttree/tenantstore/engine"
)

// instance is one tenant's open database and keys. Whoever holds a reference
// may use it; it is closed only when nobody does.
type instance struct {
	uid    UID
	id     ID
	entry  entry
	db     engine.DB
	seal   *sealer
	limits *limiter
	closer func(*instance) error
	shared bool        // other processes may have it open too
	mark   []byte      // engine key of what makes writes be noted
	noting atomic.Bool // the mark is set; unknown where shared

	checked atomic.Int64 // when the key provider last unwrapped the key

	mu     mutex     // guards what follows
	seen   time.Time // when the catalogue was last asked, where it is shared
	dirty  bool      // the session has written
	anchor []byte    // that the catalogue remembers

	refused   error // the key provider's last
	refusedAt time.Time
}

func (in *instance) trail() trail { return trail{uid: in.uid, seal: in.seal} }

// busyWait is how long an operation waits for a free handle before ErrBusy.
const busyWait = 5 * time.Second

// cache holds the open instances: at most max, the idle ones in the order of
// their last use. Opening is single-flight, without the lock.
type cache struct {
	max int

	mu      sync.Mutex
	slots   map[UID]*slot
	used    *list.List    // of open *slot, least recently used first
	changed chan struct{} // closed and replaced when somebody may go on
	waiting int           // how many wait for that
	closed  bool
}

type slot struct {
	uid     UID
	in      *instance // nil while opening or blocked
	refs    int
	blocked bool          // opening, closing, or taken by block
	elem    *list.Element // in used, unless blocked
}

func newCache(n int) *cache {
	return &cache{max: n, slots: map[UID]*slot{}, used: list.New(), changed: make(chan struct{})}
}

func (c *cache) wake() {
	if c.waiting == 0 {
		return
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// wait unlocks until something changed.
func (c *cache) wait(ctx context.Context, timeout <-chan time.Time) error {
	ch := c.changed
	c.waiting++
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.waiting--
	}()
	select {
	case <-ch:
		return nil
	case <-timeout:
		return ErrBusy
	case <-ctx.Done():
		return ctx.Err()
	}
}

// acquire returns the instance of a tenant with a reference, opening it if
// need be.
func (c *cache) acquire(ctx context.Context, uid UID, open func(context.Context) (*instance, error)) (*slot, error) {
	var timeout <-chan time.Time
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if c.closed {
			return nil, ErrTenantClosed
		}
		s, ok := c.slots[uid]
		switch {
		case ok && !s.blocked:
			c.used.MoveToBack(s.elem)
			s.refs++
			return s, nil
		case ok: // somebody opens or closes it
		case len(c.slots) < c.max:
			return c.open(ctx, uid, open)
		default:
			if idle := c.idle(); idle != nil {
				c.evict(idle)
				continue
			}
		}
		if timeout == nil {
			timer := time.NewTimer(busyWait)
			defer timer.Stop()
			timeout = timer.C
		}
		if err := c.wait(ctx, timeout); err != nil {
			return nil, err
		}
	}
}

func (c *cache) open(ctx context.Context, uid UID, open func(context.Context) (*instance, error)) (*slot, error) {
	s := &slot{uid: uid, blocked: true}
	c.slots[uid] = s
	c.mu.Unlock()
	in, err := open(ctx)
	c.mu.Lock()
	defer c.wake()
	if err != nil {
		delete(c.slots, uid)
		return nil, err
	}
	s.in, s.blocked, s.refs = in, false, 1
	s.elem = c.used.PushBack(s)
	return s, nil
}

// idle returns the open instance that nobody uses and that was used least
// recently, or nil.
func (c *cache) idle() *slot {
	for e := c.used.Front(); e != nil; e = e.Next() {
		if s := e.Value.(*slot); s.refs == 0 {
			return s
		}
	}
	return nil
}

// shut takes a slot out of use: nobody gets it any more.
func (c *cache) shut(s *slot) {
	s.blocked = true
	if s.elem != nil {
		c.used.Remove(s.elem)
		s.elem = nil
	}
}

// evict closes an idle instance; the slot counts until it is closed.
func (c *cache) evict(s *slot) {
	c.shut(s)
	c.mu.Unlock()
	_ = s.in.closer(s.in)
	c.mu.Lock()
	delete(c.slots, s.uid)
	c.wake()
}

func (c *cache) release(s *slot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.refs--; s.refs == 0 {
		c.wake()
	}
}

// block closes a tenant's instance when its users are done and keeps it shut
// until the returned function is called.
func (c *cache) block(ctx context.Context, uid UID) (unblock func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.slots[uid] != nil && c.slots[uid].blocked {
		if err := c.wait(ctx, nil); err != nil {
			return nil, err
		}
	}
	s := c.slots[uid]
	if s == nil {
		s = &slot{uid: uid}
		c.slots[uid] = s
	}
	c.shut(s)
	unblock = func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.slots[uid] == s {
			delete(c.slots, uid)
		}
		c.wake()
	}
	for s.refs > 0 {
		if err := c.wait(ctx, nil); err != nil {
			s.blocked, s.elem = false, c.used.PushBack(s)
			c.wake()
			return nil, err
		}
	}
	if s.in != nil {
		c.mu.Unlock()
		_ = s.in.closer(s.in)
		c.mu.Lock()
		s.in = nil
	}
	return unblock, nil
}

// close closes every instance when its users are done.
func (c *cache) close(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.wake()
	for len(c.slots) > 0 {
		if idle := c.idle(); idle != nil {
			c.evict(idle)
			continue
		}
		if err := c.wait(ctx, nil); err != nil {
			return err
		}
	}
	return nil
}
