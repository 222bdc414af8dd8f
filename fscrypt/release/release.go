// Package release is the cloud's side of fscrypt's Remote protector: it mints
// shares of volume keys, releases them to nodes that the operator still
// trusts, for a lease, and stops doing so when a node is revoked.
//
// A share alone opens nothing: the node adds what its TPM seals and what its
// disk holds. The transport is the caller's: it must authenticate the node and
// hand its identity to Handle, for example as an HTTP handler behind tlsconn's
// gateway. Shares travel sealed (HPKE, RFC 9180, with X25519 and ML-KEM-768)
// to a key that the node made for the request.
package release

import (
	"context"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/trusttree/trusttree/fscrypt/internal/wire"
)

var (
	// ErrRevoked, returned by Authorize, refuses for good.
	ErrRevoked = errors.New("revoked")
	// ErrUnavailable, returned by Authorize, asks the node to try later.
	ErrUnavailable = errors.New("try later")
)

// Limits of one service.
const (
	// MaxShares is how many shares one device may hold.
	MaxShares = 64
	// MaxLease is the longest lease.
	MaxLease = 30 * 24 * time.Hour
	maxName  = 256
)

// Service releases shares. Its methods are safe for concurrent use if its
// Store is. A Service without Authorize refuses everything.
type Service struct {
	// Store keeps shares and revocations. Required. It should encrypt what it
	// keeps; a copy of it alone opens no volume.
	Store Store
	// Authorize decides whether a device gets the share of a volume now, and
	// for how long: the place to ask for its attestation result. The lease is
	// capped at MaxLease and rounded down to seconds; less than a second
	// refuses. An error refuses: ErrRevoked for good, ErrUnavailable for now,
	// others with their text as the reason. Required.
	Authorize func(ctx context.Context, device, label string) (lease time.Duration, err error)
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Logger gets one event for every decision; nil means none.
	Logger *slog.Logger
}

// Grant is a share that was released.
type Grant struct {
	Device string    `json:"device"`
	Volume string    `json:"volume"`
	Label  string    `json:"label"`
	Until  time.Time `json:"until"` // zero if it was minted and never released
}

type record struct {
	Version int `json:"version"`
	Grant
	Slot  string `json:"slot"`
	Share []byte `json:"share"`
}

// Handle answers one request of a device, which the transport authenticated.
// The response is for the device also when it refuses; an error means that the
// service itself failed or that the request is malformed (errors.As finds a
// *RequestError).
func (s *Service) Handle(ctx context.Context, device string, request []byte) ([]byte, error) {
	if device == "" || len(device) > maxName {
		return nil, &RequestError{errors.New("no device name from the transport")}
	}
	req, err := wire.ParseRequest(request)
	if err != nil {
		return nil, &RequestError{err}
	}
	rsp, err := s.decide(ctx, device, req)
	if err != nil {
		return nil, fmt.Errorf("release: %s of %s for %s: %w", req.Op, req.Label, device, err)
	}
	if s.Logger != nil {
		s.Logger.LogAttrs(ctx, slog.LevelInfo, "share "+rsp.Status, slog.String("event", "fscrypt.share."+rsp.Status),
			slog.String("device", device), slog.String("op", req.Op), slog.String("volume", req.Volume),
			slog.String("label", req.Label), slog.String("reason", rsp.Reason), slog.Int64("lease_seconds", rsp.LeaseSeconds))
	}
	return json.Marshal(rsp)
}

// RequestError is a request that can't be answered: an HTTP server's 400.
type RequestError struct{ Err error }

// Error says what is wrong with the request.
func (e *RequestError) Error() string { return "release: bad request: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *RequestError) Unwrap() error { return e.Err }

func refuse(status, reason string) *wire.Response {
	return &wire.Response{Version: wire.Version, Status: status, Reason: reason}
}

func (s *Service) decide(ctx context.Context, device string, req *wire.Request) (*wire.Response, error) {
	_, err := s.Store.Get(ctx, revokedKey(device))
	switch {
	case err == nil:
		return refuse(wire.StatusRevoked, "device is revoked"), nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if req.Op == wire.OpDrop { // giving up a share needs no permission
		return refuse(wire.StatusOK, ""), s.Store.Delete(ctx, shareKey(device, req.Volume, req.Slot))
	}
	if s.Authorize == nil {
		return refuse(wire.StatusRefused, "no policy configured"), nil
	}
	lease, err := s.Authorize(ctx, device, req.Label)
	switch {
	case errors.Is(err, ErrRevoked):
		return refuse(wire.StatusRevoked, "device is revoked"), nil
	case errors.Is(err, ErrUnavailable):
		return refuse(wire.StatusLater, "decision not available"), nil
	case err != nil:
		return refuse(wire.StatusRefused, truncate(err.Error(), 512)), nil
	}
	lease = min(lease, MaxLease).Truncate(time.Second)
	if lease < time.Second {
		return refuse(wire.StatusRefused, "no lease granted"), nil
	}
	rec, err := s.record(ctx, device, req)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return refuse(wire.StatusRefused, "no such share"), nil
	case errors.Is(err, fs.ErrExist):
		return refuse(wire.StatusRefused, "the share exists: it is never minted twice"), nil
	case errors.Is(err, errTooMany):
		return refuse(wire.StatusRefused, errTooMany.Error()), nil
	case err != nil:
		return nil, err
	}
	defer clear(rec.Share)
	rsp := refuse(wire.StatusOK, "")
	rsp.LeaseSeconds = int64(lease / time.Second)
	if req.Op == wire.OpMint || req.Op == wire.OpRelease {
		key, err := wire.KEM().NewPublicKey(req.Key)
		if err != nil {
			return nil, &RequestError{err}
		}
		if rsp.Share, err = hpke.Seal(key, wire.KDF(), wire.AEAD(), req.Info(), rec.Share); err != nil {
			return nil, err
		}
	}
	if req.Op != wire.OpMint {
		rec.Until = s.now().Add(lease)
		if err := s.put(ctx, rec, false); err != nil {
			return nil, err
		}
	}
	return rsp, nil
}

var errTooMany = fmt.Errorf("device holds %d shares, the most allowed", MaxShares)

// record finds the share that a request is about, or mints it.
func (s *Service) record(ctx context.Context, device string, req *wire.Request) (*record, error) {
	if req.Op == wire.OpMint {
		keys, err := s.Store.List(ctx, sharePrefix(device))
		if err != nil {
			return nil, err
		}
		if len(keys) >= MaxShares {
			return nil, errTooMany
		}
		rec := &record{Version: 1, Grant: Grant{Device: device, Volume: req.Volume, Label: req.Label}, Slot: req.Slot, Share: make([]byte, 32)}
		rand.Read(rec.Share)
		return rec, s.put(ctx, rec, true)
	}
	b, err := s.Store.Get(ctx, shareKey(device, req.Volume, req.Slot))
	if err != nil {
		return nil, err
	}
	rec, err := parseRecord(b)
	if err == nil && rec.Label != req.Label {
		return nil, fs.ErrNotExist
	}
	return rec, err
}

func parseRecord(b []byte) (*record, error) {
	rec := new(record)
	if err := strict(b, rec); err != nil {
		return nil, fmt.Errorf("stored share: %w", err)
	}
	if rec.Version != 1 || len(rec.Share) != 32 {
		return nil, fmt.Errorf("stored share: version %d", rec.Version)
	}
	return rec, nil
}

func (s *Service) put(ctx context.Context, rec *record, create bool) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	defer clear(b)
	return s.Store.Put(ctx, shareKey(rec.Device, rec.Volume, rec.Slot), b, create)
}

// Revoke refuses a device from now on. Leases granted before run out by
// themselves; Grants tells when.
func (s *Service) Revoke(ctx context.Context, device, reason string) error {
	b, err := json.Marshal(map[string]any{"version": 1, "device": device, "reason": reason, "time": s.now()})
	if err != nil {
		return err
	}
	if err := s.Store.Put(ctx, revokedKey(device), b, false); err != nil {
		return fmt.Errorf("release: revoke %s: %w", device, err)
	}
	return nil
}

// Forget deletes a device's shares: what they helped to guard is lost for good,
// unless a recovery key opens it.
func (s *Service) Forget(ctx context.Context, device string) error {
	keys, err := s.Store.List(ctx, sharePrefix(device))
	for _, k := range keys {
		err = errors.Join(err, s.Store.Delete(ctx, k))
	}
	if err != nil {
		return fmt.Errorf("release: forget %s: %w", device, err)
	}
	return nil
}

// Grants lists a device's shares and until when the last lease of each runs:
// what a node that was stolen with its power on can still read.
func (s *Service) Grants(ctx context.Context, device string) ([]Grant, error) {
	keys, err := s.Store.List(ctx, sharePrefix(device))
	if err != nil {
		return nil, fmt.Errorf("release: grants of %s: %w", device, err)
	}
	var gs []Grant
	for _, k := range keys {
		b, err := s.Store.Get(ctx, k)
		if err != nil {
			return nil, fmt.Errorf("release: grants of %s: %w", device, err)
		}
		rec, err := parseRecord(b)
		if err != nil {
			return nil, fmt.Errorf("release: grants of %s: %w", device, err)
		}
		clear(rec.Share)
		gs = append(gs, rec.Grant)
	}
	return gs, nil
}

func (s *Service) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func hash(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func revokedKey(device string) string  { return "revoked-" + hash(device) }
func sharePrefix(device string) string { return "share-" + hash(device) + "-" }
func shareKey(device, volume, slot string) string {
	return sharePrefix(device) + hash(volume, slot)
}

func truncate(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}
