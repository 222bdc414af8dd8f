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
// proves itself by its TPM.
func enrollHandler(r *attest.Registrar, f *fleet, log *slog.Logger) http.Handler {
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
	return http.MaxBytesHandler(mux, attest.MaxMessage)
}

// serveMessage decodes one message, acts, and encodes the answer. What was
// refused is told to the node in a word, and to the log in full.
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
	code := http.StatusForbidden
	switch {
	case errors.Is(err, attest.ErrMalformed):
		code = http.StatusBadRequest
	case errors.Is(err, registry.ErrConflict), errors.Is(err, registry.ErrFull):
		code = http.StatusServiceUnavailable
	}
	log.Warn("enrolment refused", "event", "enroll.refused", "path", req.URL.Path, "from", req.RemoteAddr, "reason", err.Error())
	http.Error(w, err.Error(), code)
}

// admission is the owner's rule: who holds an unused token of a bootstrap.json
// may bind one TPM to it. A TPM that is bound may enrol again, for a new
// certificate, without one; the registrar refuses those that are revoked.
func admission(t tokens, d registry.DeviceStore, now func() time.Time) func(context.Context, attest.Applicant) error {
	return func(ctx context.Context, a attest.Applicant) error {
		device := a.Endorsement.Device()
		if _, err := d.Get(ctx, device); !errors.Is(err, registry.ErrNotFound) {
			return err
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
