// Package powercut is for tests: engines and key providers of which every step
// that leaves the process can be cut, held or counted.
package powercut

import (
	"context"
	"errors"
	"sync"

	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/engine"
)

// ErrPower is what everything returns after the cut.
var ErrPower = errors.New("power cut")

// Power counts the steps that leave the process and, from the n-th on, lets
// none of them happen any more: what follows a power cut.
type Power struct {
	mu   sync.Mutex
	left int // steps until the cut; negative: no cut
	late bool

	puts map[uint32]int         // by generation
	hold map[uint32]*chan error // by generation
	held chan struct{}
}

// New returns power that is on.
func New() *Power {
	return &Power{left: -1, puts: map[uint32]int{}, hold: map[uint32]*chan error{}, held: make(chan struct{}, 64)}
}

// Cut cuts at the n-th step from now; late cuts after the step was done, before
// its answer. A negative n puts the power on again.
func (p *Power) Cut(n int, late bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left, p.late = n, late
}

// IsCut reports whether the cut was reached.
func (p *Power) IsCut() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.left == 0
}

// Puts returns how many records were put into instances of a generation, in
// transactions that committed.
func (p *Power) Puts(generation uint32) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.puts[generation]
}

// Hold makes the next transaction of that generation wait after its commit;
// Held gets one when it does, and what is sent to the channel is its answer.
func (p *Power) Hold(generation uint32) chan<- error {
	p.mu.Lock()
	defer p.mu.Unlock()
	ch := make(chan error, 1)
	p.hold[generation] = &ch
	return ch
}

// Held gets one for each transaction that waits.
func (p *Power) Held() <-chan struct{} { return p.held }

func (p *Power) step(do func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left == 0 {
		return ErrPower
	}
	if p.left > 0 {
		p.left--
	}
	if p.left == 0 && !p.late {
		return ErrPower
	}
	err := do()
	if p.left == 0 {
		return ErrPower
	}
	return err
}

// Engine is an engine on the power, under a name of its own.
type Engine struct {
	engine.Engine
	As    string
	Power *Power
}

// Name implements engine.Engine.
func (e *Engine) Name() string { return e.As }

// Create implements engine.Engine.
func (e *Engine) Create(ctx context.Context, r engine.Ref, k []byte, first ...engine.KV) error {
	return e.Power.step(func() error { return e.Engine.Create(ctx, r, k, first...) })
}

// Destroy implements engine.Engine.
func (e *Engine) Destroy(ctx context.Context, r engine.Ref) error {
	return e.Power.step(func() error { return e.Engine.Destroy(ctx, r) })
}

// Fence implements engine.Engine.
func (e *Engine) Fence(ctx context.Context, r engine.Ref, on bool) error {
	return e.Power.step(func() error { return e.Engine.Fence(ctx, r, on) })
}

// Open implements engine.Engine.
func (e *Engine) Open(ctx context.Context, r engine.Ref, k []byte) (engine.DB, error) {
	inner, err := e.Engine.Open(ctx, r, k)
	return &db{inner, e.Power, r.Generation}, err
}

type db struct {
	engine.DB
	p          *Power
	generation uint32
}

func (d *db) Update(ctx context.Context, f func(engine.Tx) error) error {
	n := 0
	run := func() error {
		return d.DB.Update(ctx, func(tx engine.Tx) error {
			c := &counting{tx, 0}
			err := f(c.whole())
			n = c.n
			return err
		})
	}
	d.p.mu.Lock()
	metered := d.p.left >= 0
	d.p.mu.Unlock()
	var err error
	if metered {
		err = d.p.step(run)
	} else {
		err = run() // steps of several goroutines go on beside each other
	}
	d.p.mu.Lock()
	if err == nil {
		d.p.puts[d.generation] += n
	}
	hold := d.p.hold[d.generation]
	delete(d.p.hold, d.generation)
	d.p.mu.Unlock()
	if hold != nil {
		d.p.held <- struct{}{}
		err = errors.Join(err, <-*hold)
	}
	return err
}

// counting counts the records that a transaction puts.
type counting struct {
	engine.Tx
	n int
}

func (c *counting) Put(k, v []byte) error {
	if k[0] == 'r' {
		c.n++
	}
	return c.Tx.Put(k, v)
}

// whole returns the transaction with what its engine can do beyond engine.Tx.
func (c *counting) whole() engine.Tx {
	w, waker := c.Tx.(engine.Waker)
	p, peeker := c.Tx.(engine.Peeker)
	if waker && peeker {
		return struct {
			*counting
			engine.Waker
			engine.Peeker
		}{c, w, p}
	}
	return c
}

// Keys is a key provider on the power.
type Keys struct {
	tenantstore.KeyProvider
	Power *Power
}

// Create implements tenantstore.KeyProvider.
func (k *Keys) Create(ctx context.Context, id string) error {
	return k.Power.step(func() error { return k.KeyProvider.Create(ctx, id) })
}

// Destroy implements tenantstore.KeyProvider.
func (k *Keys) Destroy(ctx context.Context, id string) error {
	return k.Power.step(func() error { return k.KeyProvider.Destroy(ctx, id) })
}
