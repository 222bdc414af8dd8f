package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/trusttree/trusttree/tenantstore"
)

// destinations bounds how many flows the whole fleet has open to one
// destination, so that it can't be turned against somebody. An instance takes
// places in blocks, as leases in the store that all instances share, and gives
// them to its flows; an instance that dies gives its places back when they run
// out. It is safe for concurrent use.
type destinations struct {
	t        *tenantstore.Tenant
	instance string
	limit    int
	shared   bool // there are other instances

	mu   sync.Mutex
	held map[string]*places // by network and address
}

// places are what one instance holds of one destination.
type places struct {
	used, leased int
}

const (
	destinationsCollection = "destinations"
	defaultDestination     = 256 // flows to one destination
	placeBlock             = 16  // places that an instance takes at once
	placeLife              = 30 * time.Second
	maxDestinations        = 10000 // destinations in use at one instance
)

var errDestinationFull = errors.New("the fleet has as many flows open to this destination as it may")

func newDestinations(t *tenantstore.Tenant, instance string, limit int, shared bool) *destinations {
	if limit == 0 {
		limit = defaultDestination
	}
	return &destinations{t: t, instance: instance, limit: limit, shared: shared, held: map[string]*places{}}
}

// take is tlsconn's Config.Fleet.
func (d *destinations) take(ctx context.Context, network string, addr netip.AddrPort) (release func(), err error) {
	key := network + " " + addr.String()
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.held[key]
	if p == nil {
		if len(d.held) >= maxDestinations {
			return nil, fmt.Errorf("%d destinations are in use", len(d.held))
		}
		p = &places{}
		d.held[key] = p
	}
	if p.used == p.leased {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if err := d.lease(ctx, key, p, p.leased+placeBlock); err != nil {
			if p.used == 0 {
				delete(d.held, key)
			}
			return nil, fmt.Errorf("%s: %w", key, err)
		}
	}
	p.used++
	var once sync.Once
	return func() {
		once.Do(func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			p.used--
		})
	}, nil
}

// lease makes this instance hold want places, or as many more than it uses as
// there are. The caller holds the lock.
func (d *destinations) lease(ctx context.Context, key string, p *places, want int) error {
	if !d.shared {
		if p.leased = min(want, d.limit); p.leased <= p.used {
			return errDestinationFull
		}
		return nil
	}
	granted := 0
	prefix := []byte(key + " ")
	err := d.t.Update(ctx, func(tx *tenantstore.Tx) error {
		now, others := time.Now(), 0
		for rec, err := range tx.Scan(destinationsCollection, tenantstore.Range{Prefix: prefix}) {
			if err != nil {
				return err
			}
			if string(rec.Key[len(prefix):]) != d.instance && len(rec.Value) == 12 &&
				now.Before(time.Unix(int64(binary.BigEndian.Uint64(rec.Value)), 0)) {
				others += int(binary.BigEndian.Uint32(rec.Value[8:]))
			}
		}
		granted = min(want, d.limit-others)
		if want > 0 && granted <= p.used {
			return errDestinationFull
		}
		mine := append(prefix[:len(prefix):len(prefix)], d.instance...)
		if want == 0 {
			return tx.Delete(destinationsCollection, mine)
		}
		value := binary.BigEndian.AppendUint64(nil, uint64(now.Add(placeLife).Unix()))
		_, err := tx.Put(destinationsCollection, mine, binary.BigEndian.AppendUint32(value, uint32(granted)))
		return err
	})
	if err == nil {
		p.leased = granted
	}
	return err
}

// run renews the leases that are in use and gives back the others.
func (d *destinations) run(ctx context.Context) {
	tick := time.NewTicker(placeLife / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			d.renew(ctx)
		}
	}
}

func (d *destinations) renew(ctx context.Context) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, p := range d.held {
		want := 0
		if p.used > 0 {
			want = (p.used/placeBlock + 1) * placeBlock
		}
		// A lease that can't be renewed runs out; new flows are then refused.
		if err := d.lease(ctx, key, p, want); err != nil || want == 0 {
			p.leased = p.used
		}
		if p.used == 0 {
			delete(d.held, key)
		}
	}
}
