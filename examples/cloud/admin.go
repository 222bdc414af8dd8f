package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/registry"
	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tlsconn"
)

// maxAdmin bounds the body of an operator's request, in bytes.
const maxAdmin = 1 << 20

// admin is the operators' API. Every handler demands a client certificate to
// which the owner's assignments grant the role "control".
type admin struct {
	store      *tenantstore.Store
	registrar  *attest.Registrar
	gateway    *tlsconn.Gateway
	fleet      *fleet
	modules    *moduleList
	references *references
	domain     string
	engine     string                              // where new tenants are kept
	act        func(context.Context, change) error // here and at the other instances
	log        *slog.Logger
}

func (c *cloud) admin() *admin {
	a := &admin{store: c.store, registrar: c.registrar, gateway: c.gateway, fleet: c.fleet, modules: c.modules, references: c.references, domain: c.cfg.TrustDomain, log: c.log}
	if c.cfg.Postgres != "" {
		a.engine = "postgres"
	}
	a.act = func(ctx context.Context, ch change) error {
		return errors.Join(c.apply(ctx, ch), c.announce(ctx, ch))
	}
	return a
}

func (a *admin) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /v1/admin/assignments", a.operator(a.assign))
	mux.HandleFunc("PUT /v1/admin/module-revocations", a.operator(a.reviseModules))
	mux.HandleFunc("GET /v1/admin/references", a.operator(a.listReferences))
	mux.HandleFunc("PUT /v1/admin/reference-floor", a.operator(a.raiseFloor))
	mux.HandleFunc("PUT /v1/admin/tenants/{id}", a.operator(a.createTenant))
	mux.HandleFunc("POST /v1/admin/nodes/{id}/revoke", a.operator(a.revoke))
	mux.HandleFunc("POST /v1/admin/nodes/{id}/release", a.operator(a.release))
	mux.HandleFunc("GET /v1/admin/tenants", a.operator(a.listTenants))
	mux.HandleFunc("POST /v1/admin/tokens", a.operator(a.newToken))
	mux.HandleFunc("GET /v1/admin/checkpoint", a.operator(a.checkpoint))
	mux.HandleFunc("POST /v1/admin/nodes/{id}/reattest", a.operator(a.reattest))
	mux.HandleFunc("GET /v1/admin/fleet", a.operator(func(w http.ResponseWriter, r *http.Request, _ tenantstore.Principal) error {
		w.Header().Set("Content-Type", "application/json")
		return json.NewEncoder(w).Encode(a.fleet.view(r.URL.Query().Get("state"), r.URL.Query().Get("q")))
	}))
	return http.MaxBytesHandler(mux, maxAdmin)
}

func (a *admin) operator(do func(http.ResponseWriter, *http.Request, tenantstore.Principal) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		p, err := a.store.Authenticate(r.Context(), r.TLS.PeerCertificates, "")
		if err == nil && p.Tenant() != "" {
			err = tenantstore.ErrDenied // a tenant's certificate is no operator's
		}
		if err == nil {
			err = do(w, r, p)
		}
		if err != nil {
			a.log.Warn("operator request refused", "event", "admin.refused", "subject", subject(r), "path", r.URL.Path, "reason", err.Error())
			http.Error(w, err.Error(), storeStatus(w, err))
		}
	}
}

// assign takes the owner's signed assignments into force.
func (a *admin) assign(w http.ResponseWriter, r *http.Request, _ tenantstore.Principal) error {
	signed, err := wire.ReadAll(r.Body, maxAdmin, "assignments")
	if err != nil {
		return err
	}
	if err := a.store.Assign(r.Context(), signed); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (a *admin) createTenant(w http.ResponseWriter, r *http.Request, p tenantstore.Principal) error {
	id, err := tenantstore.ParseID(r.PathValue("id"))
	if err != nil {
		return err
	}
	info, err := a.store.Create(r.Context(), p, tenantstore.Spec{ID: id, Engine: a.engine})
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(info)
}

// deviceArg is the device that the path names.
func deviceArg(r *http.Request) (registry.DeviceID, error) {
	device, err := registry.ParseDeviceID(r.PathValue("id"))
	if err != nil {
		err = fmt.Errorf("%w: %w", tenantstore.ErrInvalid, err)
	}
	return device, err
}

// revoke shuts a node out: its certificate, its registry entry, its tunnel and
// its data volume's share go at once.
func (a *admin) revoke(w http.ResponseWriter, r *http.Request, _ tenantstore.Principal) error {
	device, err := deviceArg(r)
	if err != nil {
		return err
	}
	if err := a.registrar.Revoke(r.Context(), device, "revoked by operator "+subject(r)); err != nil {
		return err
	}
	if err := a.act(r.Context(), change{Kind: "revoked", Node: device.String(), Reason: "revoked by operator " + subject(r)}); err != nil {
		return err
	}
	a.log.Warn("node revoked", "event", "node.revoked", "node", device.String(), "by", subject(r))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// release lets a node that was revoked, and found and repaired, enrol again:
// with a new token, as if it were new.
func (a *admin) release(w http.ResponseWriter, r *http.Request, _ tenantstore.Principal) error {
	device, err := deviceArg(r)
	if err != nil {
		return err
	}
	if err := a.registrar.Release(r.Context(), device); err != nil {
		return err
	}
	if err := a.act(r.Context(), change{Kind: "released", Node: device.String(), Reason: "released by operator " + subject(r)}); err != nil {
		return err
	}
	a.log.Warn("node released: it may enrol again", "event", "node.released", "node", device.String(), "by", subject(r))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// newToken makes an enrolment token for one node: it replaces the one in that
// node's bootstrap.json.
func (a *admin) newToken(w http.ResponseWriter, r *http.Request, _ tenantstore.Principal) error {
	token, expires := rand.Text(), time.Now().Add(tokenLife).UTC().Truncate(time.Second)
	if err := (tokens{a.store.System()}).add(r.Context(), []byte(token), expires); err != nil {
		return err
	}
	a.log.Info("enrolment token made", "event", "token.made", "by", subject(r), "expires", expires)
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(map[string]any{"token": token, "token_expires": expires})
}

// tokenLife is how long a token that an operator asks for works.
const tokenLife = 24 * time.Hour

func (a *admin) listTenants(w http.ResponseWriter, r *http.Request, p tenantstore.Principal) error {
	all, err := a.store.Tenants(r.Context(), p)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(all)
}

// checkpoint signs the audit log of this instance as it is now: whoever keeps
// it notices when the log is cut or rewritten.
func (a *admin) checkpoint(w http.ResponseWriter, r *http.Request, _ tenantstore.Principal) error {
	signed, err := a.store.Checkpoint(r.Context())
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err = w.Write(signed)
	return err
}

func (a *admin) reattest(w http.ResponseWriter, r *http.Request, _ tenantstore.Principal) error {
	device, err := deviceArg(r)
	if err != nil {
		return err
	}
	n := a.gateway.Reattest(tlsconn.ID{TrustDomain: a.domain, Path: "/node/" + device.String()})
	if n == 0 { // its tunnel may be another instance's
		if err := a.act(r.Context(), change{Kind: "reattest", Node: device.String()}); err != nil {
			return err
		}
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(map[string]int{"tunnels": n})
}

// nodeKey is the name under which the fleet view keeps a tunnel's node.
func nodeKey(p tlsconn.Peer) string {
	if d, err := deviceOf(p); err == nil {
		return d.String()
	}
	return p.ID.String()
}
