package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"filippo.io/age"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tlsconn"
)

const telemetry = "telemetry" // the collection that ingest appends to

// ingestHandler takes telemetry from the tunnel: POST /v1/ingest with a
// wire.Batch as an age file to the cloud's recipient, the way nodes spool it.
// The tenant follows from the node's certificate and the stream's
// name, by the owner's assignments; nothing in the batch can choose it. A
// batch that comes again counts once.
func ingestHandler(store *tenantstore.Store, spool age.Identity, f *fleet, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/ingest", func(w http.ResponseWriter, r *http.Request) {
		peer, ok := tlsconn.PeerFromContext(r.Context())
		if !ok {
			http.Error(w, "no tunnel", http.StatusForbidden)
			return
		}
		plain, err := age.Decrypt(http.MaxBytesReader(w, r.Body, 2*wire.MaxBatch), spool)
		if err != nil {
			http.Error(w, "batch: not encrypted to this cloud", http.StatusBadRequest)
			return
		}
		data, err := wire.ReadAll(plain, wire.MaxBatch, "batch")
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		var b wire.Batch
		if err := wire.Decode(data, wire.MaxBatch, &b); err != nil || b.Version != 1 || b.ID == "" || b.Stream == "" {
			http.Error(w, fmt.Sprintf("batch: malformed (%v)", err), http.StatusBadRequest)
			return
		}
		p, err := store.Authenticate(r.Context(), peer.Chain(), b.Stream)
		if err == nil {
			err = ingest(r, store, p, b)
		}
		if err != nil {
			log.Warn("telemetry refused", "event", "ingest.refused", "node", peer.ID.String(), "stream", b.Stream, "reason", err.Error())
			http.Error(w, err.Error(), storeStatus(w, err))
			return
		}
		f.setLink(nodeKey(peer), "tenant "+string(p.Tenant()), true, "stream "+b.Stream+" stored")
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}

func ingest(r *http.Request, store *tenantstore.Store, p tenantstore.Principal, b wire.Batch) error {
	tenant, err := store.Tenant(r.Context(), p)
	if err != nil {
		return err
	}
	_, err = tenant.Ingest(r.Context(), b.Stream+"/"+b.ID, func(tx *tenantstore.Tx) error {
		for _, s := range b.Records {
			if err := tx.Append(telemetry, b.Stream, s.Time, s.Value); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// queryHandler answers a tenant: GET /v1/records?stream=NAME. Who asks is the
// client certificate; a stream that is not the tenant's looks like one that
// does not exist.
func queryHandler(store *tenantstore.Store, log *slog.Logger) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		p, err := store.Authenticate(r.Context(), r.TLS.PeerCertificates, "")
		var tenant *tenantstore.Tenant
		if err == nil {
			tenant, err = store.Tenant(r.Context(), p)
		}
		if err != nil {
			log.Warn("query refused", "event", "query.refused", "subject", subject(r), "reason", err.Error())
			http.Error(w, err.Error(), storeStatus(w, err))
			return
		}
		out := []wire.Sample{}
		for point, err := range tenant.Collection(telemetry).Series(r.Context(), r.URL.Query().Get("stream"), time.Time{}, time.Time{}) {
			if err != nil {
				http.Error(w, err.Error(), storeStatus(w, err))
				return
			}
			if out = append(out, wire.Sample{Time: point.Time, Value: point.Value}); len(out) == maxAnswer {
				break
			}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out)
	}
}

// maxAnswer bounds the records of one answer.
const maxAnswer = 10000

func storeStatus(w http.ResponseWriter, err error) int {
	var quota *tenantstore.QuotaError
	switch {
	case errors.As(err, &quota):
		w.Header().Set("Retry-After", fmt.Sprint(int(quota.RetryAfter.Seconds())+1))
		return http.StatusTooManyRequests
	case errors.Is(err, tenantstore.ErrDenied):
		return http.StatusForbidden
	case errors.Is(err, tenantstore.ErrInvalid):
		return http.StatusBadRequest
	case errors.Is(err, tenantstore.ErrBusy):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

func subject(r *http.Request) string {
	leaf := r.TLS.PeerCertificates[0]
	if len(leaf.URIs) == 1 {
		return leaf.URIs[0].String()
	}
	return leaf.Subject.CommonName
}
