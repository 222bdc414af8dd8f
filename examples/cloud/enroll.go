package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/registry"
	"github.com/trusttree/trusttree/examples/wire"
)

// enrollHandler serves POST /v1/enroll/begin and /v1/enroll/complete. The
// server is authenticated by the root in the node's bootstrap.json; the node
// proves itself by its TPM. A node without a tunnel gets the list of revoked
// modules here, too.
func enrollHandler(r *attest.Registrar, f *fleet, modules http.Handler, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/enroll/begin", func(w http.ResponseWriter, req *http.Request) {
		serveMessage(w, req, log, func(ctx context.Context, in *attest.EnrollmentRequest) (*attest.ActivationChallenge, error) {
			return r.Begin(ctx, in)
		})
	})
	mux.HandleFunc("POST /v1/enroll/complete", func(w http.ResponseWriter, req *http.Request) {
		serveMessage(w, req, log, func(ctx context.Context, in *attest.ActivationResponse) (*attest.Enrollment, error) {
			out, err := r.Complete(ctx, in)
			if err == nil {
				f.setState(out.Device.String(), "", "enrolled")
				f.setLink(out.Device.String(), "identity", true, "EK chain verified, credential activated, certificate until "+out.Expires.UTC().Format(time.RFC3339))
			}
			return out, err
		})
	})
	mux.Handle("GET "+wire.PathModuleList, modules)
	return http.MaxBytesHandler(mux, attest.MaxMessage)
}

// maxEnrolments bounds the enrolments under way at once: checking a stranger's
// certificates and making a credential for him costs about a millisecond each.
const maxEnrolments = 32

// limited answers 503 when more than n requests are under way.
func limited(n int, h http.Handler) http.Handler {
	slots := make(chan struct{}, n)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			h.ServeHTTP(w, r)
		default:
			w.Header().Set("Retry-After", "1")
			http.Error(w, "busy, try again", http.StatusServiceUnavailable)
		}
	})
}

// serveMessage decodes one message, acts, and encodes the answer. Why a node
// was refused is in the log; a stranger learns only that he was.
func serveMessage[In, Out attest.Message](w http.ResponseWriter, req *http.Request, log *slog.Logger, act func(context.Context, *In) (*Out, error)) {
	data, err := wire.ReadAll(req.Body, attest.MaxMessage, "request")
	if err == nil {
		var in *In
		if in, err = attest.Parse[In](data); err == nil {
			var out *Out
			if out, err = act(req.Context(), in); err == nil {
				if data, err = attest.Marshal(out); err == nil {
					w.Header().Set("Content-Type", "application/json")
					_, _ = w.Write(data)
					return
				}
			}
		}
	}
	code, text := http.StatusForbidden, "refused; the cloud's log says why"
	switch {
	case errors.Is(err, attest.ErrMalformed):
		code, text = http.StatusBadRequest, err.Error()
	case errors.Is(err, registry.ErrConflict), errors.Is(err, registry.ErrFull):
		code, text = http.StatusServiceUnavailable, "busy, try again"
	}
	log.Warn("enrolment refused", "event", "enroll.refused", "path", req.URL.Path, "from", req.RemoteAddr, "reason", err.Error())
	http.Error(w, text, code)
}

// admission is the owner's rule: who holds an unused token of a bootstrap.json
// may bind one TPM to it. A TPM that is bound may enrol again, for a new
// certificate, without one; the registrar refuses those that are revoked, and
// one that was released needs a new token as if it were new.
func admission(t tokens, d registry.DeviceStore, now func() time.Time) func(context.Context, attest.Applicant) error {
	return func(ctx context.Context, a attest.Applicant) error {
		device := a.Endorsement.Device()
		known, err := d.Get(ctx, device)
		if err != nil && !errors.Is(err, registry.ErrNotFound) {
			return err
		}
		if err == nil && known.State != registry.Released {
			return nil
		}
		if len(a.Token) == 0 {
			return fmt.Errorf("%w: none was sent", errToken)
		}
		if a.Proven {
			return t.use(ctx, a.Token, device, now())
		}
		return t.check(ctx, a.Token, device, now())
	}
}
