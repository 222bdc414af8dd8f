package main

import (
	"maps"
	"sync"
	"time"

	"github.com/trusttree/trusttree/tenantstore"
)

// usage counts what tenants stored through this instance since it started. It
// is safe for concurrent use.
type usage struct {
	mu      sync.Mutex
	tenants map[tenantstore.ID]tenantUsage
}

// tenantUsage is what one tenant stored.
type tenantUsage struct {
	Records, Bytes int64
	Last           time.Time
}

func newUsage() *usage { return &usage{tenants: map[tenantstore.ID]tenantUsage{}} }

func (u *usage) add(id tenantstore.ID, records, bytes int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	t := u.tenants[id]
	t.Records, t.Bytes, t.Last = t.Records+records, t.Bytes+bytes, time.Now()
	u.tenants[id] = t
}

func (u *usage) of(id tenantstore.ID) tenantUsage {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.tenants[id]
}

func (u *usage) all() map[tenantstore.ID]tenantUsage {
	u.mu.Lock()
	defer u.mu.Unlock()
	return maps.Clone(u.tenants)
}
