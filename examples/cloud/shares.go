package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"time"

	"github.com/trusttree/trusttree/attest/registry"
	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/fscrypt/release"
	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tlsconn"
)

const sharesCollection = "volume-shares"

// maxShareRequest bounds one request, in bytes.
const maxShareRequest = 16 << 10

// shareStore keeps the shares of data volumes in the store's system instance.
type shareStore struct{ c *tenantstore.Collection }

func (s shareStore) Get(ctx context.Context, key string) ([]byte, error) {
	rec, err := s.c.Get(ctx, []byte(key))
	if errors.Is(err, tenantstore.ErrNotFound) {
		return nil, fs.ErrNotExist
	}
	return rec.Value, err
}

func (s shareStore) Put(ctx context.Context, key string, value []byte, create bool) error {
	if !create {
		_, err := s.c.Put(ctx, []byte(key), value)
		return err
	}
	_, err := s.c.PutIf(ctx, []byte(key), value, 0)
	if errors.Is(err, tenantstore.ErrConflict) {
		return fs.ErrExist
	}
	return err
}

func (s shareStore) Delete(ctx context.Context, key string) error {
	return s.c.Delete(ctx, []byte(key))
}

func (s shareStore) List(ctx context.Context, prefix string) ([]string, error) {
	var keys []string
	for rec, err := range s.c.Scan(ctx, tenantstore.Range{Prefix: []byte(prefix)}) {
		if err != nil {
			return nil, err
		}
		keys = append(keys, string(rec.Key))
	}
	return keys, nil
}

// newShares returns the service that releases a data volume's share: to a node
// that is enrolled, not revoked, and attested in the tunnel it asks through.
func newShares(store *tenantstore.Store, d registry.DeviceStore, lease time.Duration, log *slog.Logger) *release.Service {
	return &release.Service{
		Store: shareStore{store.System().Collection(sharesCollection)},
		Authorize: func(ctx context.Context, device, _ string) (time.Duration, error) {
			id, err := registry.ParseDeviceID(device)
			if err != nil {
				return 0, err
			}
			entry, err := d.Get(ctx, id)
			switch {
			case errors.Is(err, registry.ErrNotFound):
				return 0, release.ErrRevoked
			case err != nil:
				return 0, release.ErrUnavailable
			case entry.State == registry.Revoked:
				return 0, release.ErrRevoked
			}
			return lease, nil
		},
		Logger: log,
	}
}

// sharesHandler serves POST /v1/share over the tunnel.
func sharesHandler(s *release.Service, f *fleet) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/share", func(w http.ResponseWriter, r *http.Request) {
		peer, ok := tlsconn.PeerFromContext(r.Context())
		if !ok || !peer.AttestedUntil.After(time.Now()) {
			http.Error(w, "not attested", http.StatusForbidden)
			return
		}
		device, err := deviceOf(peer)
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		request, err := wire.ReadAll(r.Body, maxShareRequest, "request")
		if err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		response, err := s.Handle(r.Context(), device.String(), request)
		if err != nil {
			code := http.StatusServiceUnavailable
			if bad := (*release.RequestError)(nil); errors.As(err, &bad) {
				code = http.StatusBadRequest
			}
			http.Error(w, err.Error(), code)
			return
		}
		f.setLink(device.String(), "data volume", true, "share asked for in an attested tunnel")
		_, _ = w.Write(response)
	})
	return mux
}
