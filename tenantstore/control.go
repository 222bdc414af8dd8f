package tenantstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// mutex is a lock that a caller waits for no longer than its context lives.
type mutex chan struct{}

func newMutex() mutex { return make(mutex, 1) }

func (m mutex) lock(ctx context.Context) error {
	select {
	case m <- struct{}{}:
		return nil
	default:
	}
	select {
	case m <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m mutex) unlock() { <-m }

// controls serialises the control plane of each tenant: changes of one wait for
// each other, and for nobody else's. The empty ID is the system instance.
type controls struct {
	mu   sync.Mutex
	held map[ID]*control
}

type control struct {
	mutex
	users int // who hold it or wait for it
	stop  context.CancelCauseFunc
}

// errInterrupted is why a copy stops that something more urgent waits for.
var errInterrupted = errors.New("interrupted by another change of the tenant")

// lock waits until nobody else changes the tenant.
func (c *controls) lock(ctx context.Context, id ID) (unlock func(), err error) {
	c.mu.Lock()
	if c.held == nil {
		c.held = map[ID]*control{}
	}
	x, ok := c.held[id]
	if !ok {
		x = &control{mutex: newMutex()}
		c.held[id] = x
	}
	x.users++
	c.mu.Unlock()
	leave := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if x.users--; x.users == 0 {
			delete(c.held, id)
		}
	}
	if err := x.lock(ctx); err != nil {
		leave()
		return nil, fmt.Errorf("waiting for another change of the tenant: %w", err)
	}
	return func() { x.unlock(); leave() }, nil
}

// stoppable returns a context that interrupt ends. The caller holds the lock.
func (c *controls) stoppable(ctx context.Context, id ID) (context.Context, func()) {
	ctx, stop := context.WithCancelCause(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held[id].stop = stop
	return ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.held[id].stop = nil
		stop(nil)
	}
}

// interrupt ends a copy of the tenant, which can be taken up again.
func (c *controls) interrupt(id ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if x := c.held[id]; x != nil && x.stop != nil {
		x.stop(errInterrupted)
	}
}
