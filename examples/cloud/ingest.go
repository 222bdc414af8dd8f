package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
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
func (c *cloud) ingestHandler(spool age.Identity) http.Handler {
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
		p, err := c.store.Authenticate(r.Context(), peer.Chain(), b.Stream)
		if err == nil {
			err = c.ingest(r.Context(), p, b)
		}
		if err != nil {
			c.log.Warn("telemetry refused", "event", "ingest.refused", "node", peer.ID.String(), "stream", b.Stream, "reason", err.Error())
			http.Error(w, err.Error(), storeStatus(w, err))
			return
		}
		c.fleet.setLink(nodeKey(peer), "tenant "+string(p.Tenant()), true, "stream "+b.Stream+" stored")
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}

func (c *cloud) ingest(ctx context.Context, p tenantstore.Principal, b wire.Batch) error {
	tenant, err := c.store.Tenant(ctx, p)
	if err != nil {
		return err
	}
	var size int64
	fresh, err := tenant.Ingest(ctx, b.Stream+"/"+b.ID, func(tx *tenantstore.Tx) error {
		size = 0
		for _, s := range b.Records {
			size += int64(len(s.Value))
			if err := tx.Append(telemetry, b.Stream, s.Time, s.Value); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || !fresh {
		return err
	}
	c.usage.add(p.Tenant(), int64(len(b.Records)), size)
	c.mon.records.WithLabelValues(string(p.Tenant())).Add(float64(len(b.Records)))
	c.mon.bytes.WithLabelValues(string(p.Tenant())).Add(float64(size))
	return nil
}

// tenantOf opens the tenant of who asks over mutual TLS; it answers itself when
// there is none.
func (c *cloud) tenantOf(w http.ResponseWriter, r *http.Request) *tenantstore.Tenant {
	p, err := c.store.Authenticate(r.Context(), r.TLS.PeerCertificates, "")
	var tenant *tenantstore.Tenant
	if err == nil {
		tenant, err = c.store.Tenant(r.Context(), p)
	}
	if err != nil {
		c.log.Warn("query refused", "event", "query.refused", "subject", subject(r), "reason", err.Error())
		http.Error(w, err.Error(), storeStatus(w, err))
		return nil
	}
	return tenant
}

// queryHandler answers a tenant: GET /v1/records?stream=NAME, from and to as
// RFC 3339 times if wanted. Who asks is the client certificate; a stream that
// is not the tenant's looks like one that does not exist. An answer that was
// cut at maxAnswer records says so by a Link to the rest.
func (c *cloud) queryHandler() http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		var from, to time.Time
		for name, at := range map[string]*time.Time{"from": &from, "to": &to} {
			if v := q.Get(name); v != "" {
				var err error
				if *at, err = time.Parse(time.RFC3339Nano, v); err != nil {
					http.Error(w, fmt.Sprintf("%s: %v: give a time such as 2026-01-02T15:04:05Z", name, err), http.StatusBadRequest)
					return
				}
			}
		}
		tenant := c.tenantOf(w, r)
		if tenant == nil {
			return
		}
		out := []wire.Sample{}
		for point, err := range tenant.Collection(telemetry).Series(r.Context(), q.Get("stream"), from, to) {
			if err != nil {
				http.Error(w, err.Error(), storeStatus(w, err))
				return
			}
			if len(out) >= maxAnswer && !point.Time.Equal(out[len(out)-1].Time) { // points of one time stay together
				next := url.Values{"stream": {q.Get("stream")}, "from": {point.Time.Format(time.RFC3339Nano)}}
				if !to.IsZero() {
					next.Set("to", to.Format(time.RFC3339Nano))
				}
				w.Header().Set("Link", fmt.Sprintf("</v1/records?%s>; rel=\"next\"", next.Encode()))
				break
			}
			if len(out) >= 2*maxAnswer {
				http.Error(w, fmt.Sprintf("over %d records have the time %s: they do not fit into an answer; a backup has them", maxAnswer, point.Time.Format(time.RFC3339Nano)), http.StatusUnprocessableEntity)
				return
			}
			out = append(out, wire.Sample{Time: point.Time, Value: point.Value})
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out)
	}
}

// auditHandler answers a tenant's administrator: GET /v1/audit is the tenant's
// audit trail at this instance, with proofs that tenantstore.VerifyAuditTrail
// checks offline.
func (c *cloud) auditHandler() http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		tenant := c.tenantOf(w, r)
		if tenant == nil {
			return
		}
		var b bytes.Buffer
		if err := tenant.ExportAudit(r.Context(), &b); err != nil {
			http.Error(w, err.Error(), storeStatus(w, err))
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = w.Write(b.Bytes())
	}
}

// maxAnswer bounds the records of one answer; points of the last time may add
// as many again.
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
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return "" // the listener asks for a certificate; who has none is refused all the same
	}
	leaf := r.TLS.PeerCertificates[0]
	if len(leaf.URIs) == 1 {
		return leaf.URIs[0].String()
	}
	return leaf.Subject.CommonName
}
