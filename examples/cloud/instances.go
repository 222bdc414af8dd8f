package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/trusttree/trusttree/attest/registry"
	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/keys"
	"github.com/trusttree/trusttree/tenantstore/postgres"
	"github.com/trusttree/trusttree/tlsconn"
)

// keyProvider is where the tenants' keys are: a directory, or a transit
// secrets engine.
func keyProvider(ctx context.Context, dir string, t *transitConfig) (tenantstore.KeyProvider, error) {
	if t == nil {
		return keys.OpenDir(ctx, dir, nil)
	}
	cfg := keys.TransitConfig{
		Address: t.Address, Mount: t.Mount, InsecureHTTP: t.InsecureHTTP,
		Token: func(context.Context) (string, error) {
			token, err := wire.ReadCapped(t.Token, 4096)
			return strings.TrimSpace(string(token)), err
		},
	}
	if t.Roots != "" {
		pem, err := wire.ReadCapped(t.Roots, 1<<20)
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: no certificate", t.Roots)
		}
		cfg.Client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	}
	return keys.NewTransit(cfg)
}

// storeConfig is how this instance opens the tenants' store.
func storeConfig(ctx context.Context, state string, cfg *config, owner crypto.PublicKey, ca *x509.Certificate) (tenantstore.Config, error) {
	c := tenantstore.Config{Name: cfg.TrustDomain, Dir: own(state, "store"), Owners: []crypto.PublicKey{owner}, Roots: x509.NewCertPool(), Instance: cfg.Instance}
	c.Roots.AddCert(ca)
	var err error
	if c.Keys, err = keyProvider(ctx, cfg.file(state, "kek"), cfg.Transit); err != nil {
		return c, err
	}
	if cfg.Postgres == "" {
		return c, nil
	}
	db, err := postgres.New(ctx, postgres.Config{Admin: cfg.Postgres, Schemas: cfg.Schemas})
	if err != nil {
		return c, wire.Unavailable(err, "is the PostgreSQL server of cloud.json reachable, and may that role create roles and databases?")
	}
	c.System, c.Placement = db.Name(), []tenantstore.Placement{{Region: "local", Engine: db}}
	return c, nil
}

// Collections by which instances tell one another what happened.
const (
	changesCollection = "changes"
	viewsCollection   = "views"
)

// followEvery is how often an instance asks what the others did. A revocation
// at one of them cuts tunnels at all of them within a second.
const followEvery = 500 * time.Millisecond

// A change is kept for changeLife, and read again until its time is changeSkew
// in the past, so that instances whose clocks differ by less miss none.
const (
	changeLife = 10 * time.Minute
	changeSkew = 30 * time.Second
)

// change is one record of the changes collection. Its key is the time in eight
// bytes and eight random ones.
type change struct {
	Version  int    `json:"version"` // 1
	Kind     string `json:"kind"`    // revoked, released, reattest, view, modules, references
	Node     string `json:"node"`    // whose; empty for what is about all
	Reason   string `json:"reason,omitempty"`
	Instance string `json:"instance"`
}

// announce tells the other instances.
func (c *cloud) announce(ctx context.Context, changes ...change) error {
	if c.cfg.Postgres == "" || len(changes) == 0 {
		return nil
	}
	return c.store.System().Update(ctx, func(tx *tenantstore.Tx) error {
		for _, ch := range changes {
			ch.Version, ch.Instance = 1, c.cfg.Instance
			value, err := json.Marshal(ch)
			if err != nil {
				return err
			}
			key := binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixNano()))
			key = append(key, make([]byte, 8)...)
			_, _ = rand.Read(key[8:])
			if _, err := tx.Put(changesCollection, key, value); err != nil {
				return err
			}
		}
		return nil
	})
}

// follow keeps this instance in step with the others, and the views of this
// instance's nodes in the store, until ctx ends.
func (c *cloud) follow(ctx context.Context) {
	seen := map[string]time.Time{}
	from := time.Now().Add(-changeSkew)
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		err := c.flushViews(ctx)
		if c.cfg.Postgres != "" {
			err = errors.Join(err, c.takeChanges(ctx, from, seen))
			for key, at := range seen {
				if at.Before(from) {
					delete(seen, key)
				}
			}
			from = time.Now().Add(-changeSkew)
		}
		if err != nil && ctx.Err() == nil {
			c.log.Warn("out of step with the store", "event", "instances.behind", "error", err.Error())
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (c *cloud) takeChanges(ctx context.Context, from time.Time, seen map[string]time.Time) error {
	var views []string
	start := binary.BigEndian.AppendUint64(nil, uint64(from.UnixNano()))
	for rec, err := range c.store.System().Collection(changesCollection).Scan(ctx, tenantstore.Range{From: start}) {
		if err != nil {
			return err
		}
		if len(rec.Key) != 16 || !seen[string(rec.Key)].IsZero() {
			continue
		}
		seen[string(rec.Key)] = time.Unix(0, int64(binary.BigEndian.Uint64(rec.Key)))
		var ch change
		if err := wire.Decode(rec.Value, 64<<10, &ch); err != nil || ch.Version != 1 || ch.Instance == c.cfg.Instance {
			continue // of a newer instance, or our own
		}
		if ch.Kind == "view" {
			views = append(views, ch.Node)
			continue
		}
		if err := c.apply(ctx, ch); err != nil {
			return err
		}
	}
	return c.loadViews(ctx, views)
}

// apply does here what another instance announced, or this one decided.
func (c *cloud) apply(ctx context.Context, ch change) error {
	switch ch.Kind {
	case "modules":
		err := c.modules.load(ctx)
		c.recheckAll()
		return err
	case "references":
		c.references.expire()
		c.recheckAll()
		return nil
	}
	device, err := registry.ParseDeviceID(ch.Node)
	if err != nil {
		return err
	}
	id := tlsconn.ID{TrustDomain: c.cfg.TrustDomain, Path: "/node/" + device.String()}
	r := tlsconn.Revocation{ID: id, Reason: ch.Reason}
	switch ch.Kind {
	case "revoked":
		c.fleet.setState(device.String(), id.Path, "revoked", ch.Reason)
		return c.trust.Revoke(r)
	case "released":
		c.fleet.setState(device.String(), id.Path, "released", "it may enrol again, with a new token")
		return c.trust.Unrevoke(r)
	case "reattest":
		c.gateway.Reattest(id)
	}
	return nil
}

// flushViews writes what changed in the picture of the fleet, at most
// maxFlush nodes in one transaction.
func (c *cloud) flushViews(ctx context.Context) error {
	views := c.fleet.flush()
	for len(views) > 0 {
		part := views[:min(len(views), maxFlush)]
		changes := make([]change, len(part))
		err := c.store.System().Update(ctx, func(tx *tenantstore.Tx) error {
			for i, v := range part {
				key, err := hex.DecodeString(v.ID)
				if err != nil || len(key) == 0 {
					continue
				}
				value, err := json.Marshal(v)
				if err != nil {
					return err
				}
				if _, err := tx.Put(viewsCollection, key, value); err != nil {
					return err
				}
				changes[i] = change{Kind: "view", Node: v.ID}
			}
			return nil
		})
		if err == nil {
			err = c.announce(ctx, changes...)
		}
		if err != nil {
			c.fleet.undo(views)
			return err
		}
		views = views[len(part):]
	}
	return nil
}

// maxFlush bounds one transaction of views.
const maxFlush = 500

// loadViews reads views that other instances wrote; nil reads none.
func (c *cloud) loadViews(ctx context.Context, ids []string) error {
	var views []nodeView
	for _, id := range ids {
		key, err := hex.DecodeString(id)
		if err != nil {
			continue
		}
		rec, err := c.store.System().Collection(viewsCollection).Get(ctx, key)
		if errors.Is(err, tenantstore.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if v, ok := parseView(rec.Value); ok {
			views = append(views, v)
		}
	}
	c.fleet.take(views)
	return nil
}

// loadAllViews reads the picture of the fleet as it was when the cloud stopped.
func (c *cloud) loadAllViews(ctx context.Context) error {
	var views []nodeView
	for rec, err := range c.store.System().Collection(viewsCollection).Scan(ctx, tenantstore.Range{}) {
		if err != nil {
			return err
		}
		if v, ok := parseView(rec.Value); ok {
			views = append(views, v)
		}
	}
	c.fleet.take(views)
	return nil
}

// parseView reads a view. One of a newer version is left out: it is a picture
// and decides nothing.
func parseView(data []byte) (nodeView, bool) {
	var v nodeView
	err := wire.Decode(data, 256<<10, &v)
	return v, err == nil && v.Version == 1
}

// sweepChanges removes changes that every instance has seen.
func (c *cloud) sweepChanges(ctx context.Context, now time.Time) error {
	col := c.store.System().Collection(changesCollection)
	end := binary.BigEndian.AppendUint64(nil, uint64(now.Add(-changeLife).UnixNano()))
	for rec, err := range col.Scan(ctx, tenantstore.Range{To: end}) {
		if err == nil {
			err = col.Delete(ctx, rec.Key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// own returns a path inside a state directory.
func own(state, name string) string { return state + string(os.PathSeparator) + name }
