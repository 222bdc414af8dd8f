package tenantstore

import (
	"context"

	"github.com/trusttree/trusttree/tenantstore/engine"
)

// Usage is what a tenant occupies.
type Usage struct {
	Bytes   int64 `json:"bytes"`   // of the instance, with the engine's own structures
	Records int64 `json:"records"` // records, points and marks of ingested messages
}

// Verify reads the tenant's whole instance: the engine's structures must hold
// and every record must authenticate. It needs RoleAdmin, and returns
// ErrTampered otherwise. Writers wait in between, not throughout.
func (t *Tenant) Verify(ctx context.Context) (Usage, error) {
	var u Usage
	err := t.with(ctx, "verify", "", []Role{RoleAdmin}, func(in *instance) (err error) {
		if err := in.db.Check(ctx); err != nil {
			return err
		}
		if u.Bytes, err = in.db.Size(ctx); err != nil {
			return err
		}
		return in.pages(ctx, func(kv engine.KV) error {
			_, _, err := in.seal.open(new(scratch), kv.Key, kv.Value)
			if err == nil && !own(kv.Key) && kv.Key[0] != kindOnceAt {
				u.Records++
			}
			return err
		})
	})
	return u, boundary(ctx, "verify", err)
}

// pages gives every sealed pair of the instance to each, outside of its lock.
func (in *instance) pages(ctx context.Context, each func(engine.KV) error) error {
	var from []byte
	for {
		page, err := in.page(ctx, from, pageRecords, pageBytes)
		if err != nil || len(page) == 0 {
			return err
		}
		last := page[len(page)-1].Key
		from = append(last[:len(last):len(last)], 0)
		for _, kv := range page {
			if err := each(kv); err != nil {
				return err
			}
		}
	}
}

// page reads the sealed pairs from a key on: at most records, and about bytes.
func (in *instance) page(ctx context.Context, from []byte, records, bytes int) (page []engine.KV, err error) {
	err = in.db.View(ctx, func(tx engine.Tx) error {
		page = page[:0]
		n := 0
		for kv, err := range tx.Scan(from, nil, false, records) {
			if err != nil {
				return err
			}
			page = append(page, kv)
			if n += len(kv.Value); n > bytes {
				break
			}
		}
		return nil
	})
	return page, err
}
