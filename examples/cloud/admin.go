package main

import (
	"encoding/json"
	"log/slog"
	"net/http"

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
	store     *tenantstore.Store
	registrar *attest.Registrar
	trust     *tlsconn.TrustStore
	gateway   *tlsconn.Gateway
	fleet     *fleet
	domain    string
	log       *slog.Logger
}

func (a *admin) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /v1/admin/assignments", a.operator(a.assign))
	mux.HandleFunc("PUT /v1/admin/tenants/{id}", a.operator(a.createTenant))
	mux.HandleFunc("POST /v1/admin/nodes/{id}/revoke", a.operator(a.revoke))
	mux.HandleFunc("POST /v1/admin/nodes/{id}/reattest", a.operator(a.reattest))
	mux.HandleFunc("GET /v1/admin/fleet", a.operator(func(w http.ResponseWriter, r *http.Request, _ tenantstore.Principal) error {
		w.Header().Set("Content-Type", "application/json")
		return json.NewEncoder(w).Encode(a.fleet.view())
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
	info, err := a.store.Create(r.Context(), p, tenantstore.Spec{ID: id})
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(info)
}

// revoke shuts a node out: its certificate, its registry entry, its tunnel and
// its data volume's share go at once.
func (a *admin) revoke(w http.ResponseWriter, r *http.Request, _ tenantstore.Principal) error {
	device, err := registry.ParseDeviceID(r.PathValue("id"))
	if err != nil {
		return err
	}
	if err := a.registrar.Revoke(r.Context(), device, "revoked by operator "+subject(r)); err != nil {
		return err
	}
	id := tlsconn.ID{TrustDomain: a.domain, Path: "/node/" + device.String()}
	if err := a.trust.Revoke(tlsconn.Revocation{ID: id, Reason: "revoked by operator"}); err != nil {
		return err
	}
	a.fleet.setState(device.String(), "", "revoked", "revoked by operator "+subject(r))
	a.log.Warn("node revoked", "event", "node.revoked", "node", device.String(), "by", subject(r))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (a *admin) reattest(w http.ResponseWriter, r *http.Request, _ tenantstore.Principal) error {
	device, err := registry.ParseDeviceID(r.PathValue("id"))
	if err != nil {
		return err
	}
	n := a.gateway.Reattest(tlsconn.ID{TrustDomain: a.domain, Path: "/node/" + device.String()})
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
