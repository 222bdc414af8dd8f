package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/tenantstore"
)

func initialise(ctx context.Context, a *app) error {
	p, err := makePKI(filepath.Join(a.dir, "pki"))
	if err != nil {
		return err
	}
	s, err := a.open(ctx, p)
	if err != nil {
		return err
	}
	err = p.assign(ctx, s)
	if err == nil {
		err = a.print(map[string]string{"audit_key": s.AuditKey()}, []string{"audit key", s.AuditKey()})
	}
	return errors.Join(err, s.Close(ctx))
}

func create(ctx context.Context, a *app) error {
	return a.with(ctx, operator, func(s *tenantstore.Store, op tenantstore.Principal, p *pki) error {
		info, err := s.Create(ctx, op, tenantstore.Spec{ID: tenantstore.ID(a.args[0])})
		if err != nil {
			return err
		}
		if err := assignAll(ctx, s, op, p); err != nil {
			return err
		}
		return a.print(info, header, row(info))
	})
}

func assignAll(ctx context.Context, s *tenantstore.Store, op tenantstore.Principal, p *pki) error {
	tenants, err := s.Tenants(ctx, op)
	if err != nil {
		return err
	}
	var ids []tenantstore.ID
	for _, t := range tenants {
		ids = append(ids, t.ID)
	}
	return p.assign(ctx, s, ids...)
}

var header = []string{"TENANT", "STATE", "UID", "ENGINE", "REGION", "GENERATION", "KEY", "CREATED"}

func row(i tenantstore.Info) []string {
	return []string{string(i.ID), i.State, i.UID.String(), i.Engine, i.Region, strconv.Itoa(int(i.Generation)), i.KeyID, i.Created.Format(time.DateTime)}
}

func list(ctx context.Context, a *app) error {
	return a.with(ctx, operator, func(s *tenantstore.Store, op tenantstore.Principal, _ *pki) error {
		tenants, err := s.Tenants(ctx, op)
		if err != nil {
			return err
		}
		rows := [][]string{header}
		for _, t := range tenants {
			rows = append(rows, row(t))
		}
		return a.print(map[string]any{"audit_key": s.AuditKey(), "tenants": tenants}, rows...)
	})
}

// tenant runs f with the handle of the tenant's own service.
func (a *app) tenant(ctx context.Context, f func(*tenantstore.Store, *tenantstore.Tenant) error) error {
	return a.with(ctx, service(a.args[0]), func(s *tenantstore.Store, p tenantstore.Principal, _ *pki) error {
		t, err := s.Tenant(ctx, p)
		if err != nil {
			return err
		}
		return f(s, t)
	})
}

type record struct {
	Key     string `json:"key"`
	Value   string `json:"value"`
	Version uint64 `json:"version"`
}

func asRecord(r tenantstore.Record) record { return record{string(r.Key), string(r.Value), r.Version} }

func put(ctx context.Context, a *app) error {
	return a.tenant(ctx, func(_ *tenantstore.Store, t *tenantstore.Tenant) error {
		v, err := t.Collection(a.args[1]).Put(ctx, []byte(a.args[2]), []byte(a.args[3]))
		if err != nil {
			return err
		}
		return a.print(map[string]uint64{"version": v}, []string{"version", strconv.FormatUint(v, 10)})
	})
}

func get(ctx context.Context, a *app) error {
	return a.tenant(ctx, func(_ *tenantstore.Store, t *tenantstore.Tenant) error {
		r, err := t.Collection(a.args[1]).Get(ctx, []byte(a.args[2]))
		if err != nil {
			return err
		}
		return a.print(asRecord(r), []string{string(r.Value)})
	})
}

func scan(ctx context.Context, a *app) error {
	return a.tenant(ctx, func(_ *tenantstore.Store, t *tenantstore.Tenant) error {
		rows, records := [][]string{{"KEY", "VALUE", "VERSION"}}, []record{}
		for r, err := range t.Collection(a.args[1]).Scan(ctx, tenantstore.Range{}) {
			if err != nil {
				return err
			}
			records = append(records, asRecord(r))
			rows = append(rows, []string{strconv.Quote(string(r.Key)), strconv.Quote(string(r.Value)), strconv.FormatUint(r.Version, 10)})
		}
		return a.print(records, rows...)
	})
}

// control is a command of the operator that has no result.
func control(do func(*tenantstore.Store, context.Context, tenantstore.Principal, tenantstore.ID) error) func(context.Context, *app) error {
	return func(ctx context.Context, a *app) error {
		return a.with(ctx, operator, func(s *tenantstore.Store, op tenantstore.Principal, _ *pki) error {
			if err := do(s, ctx, op, tenantstore.ID(a.args[0])); err != nil {
				return err
			}
			tenants, err := s.Tenants(ctx, op)
			if err != nil {
				return err
			}
			for _, t := range tenants {
				if string(t.ID) == a.args[0] {
					return a.print(t, header, row(t))
				}
			}
			return nil
		})
	}
}

// system is a command of the operator on the store's own instance.
func system(do func(*tenantstore.Store, context.Context, tenantstore.Principal, tenantstore.ID) error) func(context.Context, *app) error {
	return func(ctx context.Context, a *app) error {
		return a.with(ctx, operator, func(s *tenantstore.Store, op tenantstore.Principal, _ *pki) error {
			if err := do(s, ctx, op, ""); err != nil {
				return err
			}
			return a.print(map[string]bool{"done": true}, []string{"done"})
		})
	}
}

func verify(ctx context.Context, a *app) error {
	return a.tenant(ctx, func(_ *tenantstore.Store, t *tenantstore.Tenant) error {
		u, err := t.Verify(ctx)
		if err != nil {
			return err
		}
		return a.print(u, []string{"every record authenticates"}, []string{"records", strconv.FormatInt(u.Records, 10)}, []string{"bytes", strconv.FormatInt(u.Bytes, 10)})
	})
}

// writeFile writes a file that did not exist, or leaves none.
func writeFile(name string, write func(io.Writer) error) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}

func backup(ctx context.Context, a *app) error {
	to, err := age.ParseRecipients(strings.NewReader(a.to))
	if err != nil {
		return wire.Usage("-to: %v", err)
	}
	return a.tenant(ctx, func(_ *tenantstore.Store, t *tenantstore.Tenant) error {
		var m *tenantstore.Manifest
		if err := writeFile(a.args[1], func(w io.Writer) (err error) {
			m, err = t.Backup(ctx, w, to...)
			return err
		}); err != nil {
			return err
		}
		return a.print(m, []string{"records", strconv.FormatInt(m.Records, 10)}, []string{"sha256", m.SHA256})
	})
}

func restore(ctx context.Context, a *app) error {
	text, err := wire.ReadCapped(a.identity, maxPEM)
	if err != nil {
		return wire.Usage("-identity: %v", err)
	}
	ids, err := age.ParseIdentities(strings.NewReader(string(text)))
	if err != nil {
		return wire.Usage("-identity: %v", err)
	}
	f, err := os.Open(a.args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	return a.with(ctx, operator, func(s *tenantstore.Store, op tenantstore.Principal, p *pki) error {
		m, err := s.Restore(ctx, op, f, a.key(), ids...)
		if err != nil {
			return err
		}
		if err := assignAll(ctx, s, op, p); err != nil {
			return err
		}
		return a.print(m, []string{"tenant", string(m.Tenant)}, []string{"records", strconv.FormatInt(m.Records, 10)})
	})
}

func audit(ctx context.Context, a *app) error {
	return a.tenant(ctx, func(s *tenantstore.Store, t *tenantstore.Tenant) error {
		if err := writeFile(a.args[1], func(w io.Writer) error { return t.ExportAudit(ctx, w) }); err != nil {
			return err
		}
		return a.print(map[string]string{"file": a.args[1], "audit_key": s.AuditKey()}, []string{"verify it anywhere:"},
			[]string{fmt.Sprintf("tenants check-audit -key %s %s", s.AuditKey(), a.args[1])})
	})
}

// checkAudit verifies exports, one for each log of the store, as one trail.
func checkAudit(_ context.Context, a *app) error {
	var files []io.Reader
	for _, name := range a.args {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		files = append(files, f)
	}
	t, err := tenantstore.VerifyAuditTrail(io.MultiReader(files...), a.keys...)
	if err != nil {
		return err
	}
	rows := [][]string{{"TIME", "ACTION", "OUTCOME", "SUBJECT", "COLLECTION", "COUNT", "DETAIL"}}
	for _, e := range t.Events {
		rows = append(rows, []string{e.Time.Format(time.DateTime), e.Action, e.Outcome, e.Subject, e.Collection, strconv.FormatInt(max(e.Count, 1), 10), e.Detail})
	}
	for _, l := range t.Logs {
		rows = append(rows, []string{fmt.Sprintf("tenant %s: %d events, all in log %s of %d entries", t.Tenant, l.Events, l.Origin, l.Size)})
		for _, w := range l.Witnesses {
			rows = append(rows, []string{fmt.Sprintf("seen by witness %s at %s with %d entries", w.Witness, w.Time.Format(time.DateTime), l.Witnessed)})
		}
	}
	for _, name := range t.Missing {
		rows = append(rows, []string{"missing: the export of log " + name})
	}
	return a.print(t, rows...)
}

func destroy(ctx context.Context, a *app) error {
	return a.with(ctx, operator, func(s *tenantstore.Store, op tenantstore.Principal, _ *pki) error {
		r, err := s.Destroy(ctx, op, tenantstore.ID(a.args[0]))
		if err != nil {
			return err
		}
		if a.json {
			return a.print(r)
		}
		_, err = a.out.Write(r.Signed)
		return err
	})
}

func checkReceipt(_ context.Context, a *app) error {
	b, err := wire.ReadCapped(a.args[0], maxPEM)
	if err != nil {
		return err
	}
	r, err := tenantstore.VerifyReceipt(b, a.key())
	if err != nil {
		return err
	}
	return a.print(r, []string{r.Action, string(r.Tenant), r.UID.String(), r.Time.Format(time.DateTime)})
}
