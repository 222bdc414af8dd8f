package fscrypt

import (
	"context"
	"crypto/hpke"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/trusttree/trusttree/fscrypt/internal/wire"
)

// Remote guards a secret with a share that a service of the owner keeps and
// releases for a lease, once it is satisfied with the node's attestation. A
// stolen node, powered and in its right boot state, gets no share any more
// once it was revoked or is off the network. Use it inside All.
type Remote struct {
	// Service names the releasing service, so that a slot is not taken to
	// another one. Required.
	Service string
	// Exchange carries a request to the service and brings its response, over
	// a channel that authenticates both, for example HTTP over tlsconn's
	// tunnel to package release's handler. Required. Messages have at most
	// 16 KiB. An error means that the service can't be reached.
	Exchange func(ctx context.Context, request []byte) (response []byte, err error)
}

// Type returns "remote".
func (r *Remote) Type() string { return "remote" }

type remoteData struct {
	Service string `json:"service"`
}

// Wrap implements Protector. The service mints half of what guards the secret;
// the other half is in the slot.
func (r *Remote) Wrap(ctx context.Context, secret *Secret, b Binding) (Slot, error) {
	share, until, err := r.ask(ctx, wire.OpMint, b)
	if err != nil {
		return Slot{}, err
	}
	defer share.Erase()
	if b.notes != nil {
		b.notes.undos = append(b.notes.undos, func(ctx context.Context) error { return r.retire(ctx, Slot{}, b) })
		b.notes.lease = r.leased(until, b)
	}
	if err := share.xor(secret); err != nil {
		return Slot{}, err
	}
	d := remoteSlot{remoteData: remoteData{r.Service}}
	if err := share.Use(func(k []byte) error { d.Masked = append(d.Masked, k...); return nil }); err != nil {
		return Slot{}, err
	}
	return newSlot(b, r.Type(), d)
}

// remoteSlot holds the secret XOR the share, which alone says nothing.
type remoteSlot struct {
	remoteData
	Masked []byte `json:"masked"`
}

// Unwrap implements Protector.
func (r *Remote) Unwrap(ctx context.Context, s Slot, b Binding) (*Secret, error) {
	var d remoteSlot
	if err := strictJSON(s.Data, &d); err != nil {
		return nil, fmt.Errorf("slot: %w: %w", ErrTampered, err)
	}
	if d.Service != r.Service {
		return nil, fmt.Errorf("slot belongs to service %.40q, not %q: %w", d.Service, r.Service, ErrNoSlot)
	}
	share, until, err := r.ask(ctx, wire.OpRelease, b)
	if err != nil {
		return nil, err
	}
	masked, err := NewSecret(d.Masked)
	if err == nil {
		err = share.xor(masked)
		masked.Erase()
	}
	if err != nil {
		share.Erase()
		return nil, err
	}
	if b.notes != nil {
		b.notes.lease = r.leased(until, b)
	}
	return share, nil
}

func (r *Remote) leased(until time.Time, b Binding) *lease {
	return &lease{until: until, renew: func(ctx context.Context) (time.Time, error) {
		_, until, err := r.ask(ctx, wire.OpRenew, b)
		return until, err
	}}
}

// retire implements retirer: the service drops the share of a slot that is no
// more.
func (r *Remote) retire(ctx context.Context, _ Slot, b Binding) error {
	_, _, err := r.ask(ctx, wire.OpDrop, b)
	return err
}

// ask makes one exchange. The lease runs from before the request was sent, on
// this node's monotonic clock: a node without a battery-backed clock and a
// service with another idea of the time agree on it.
func (r *Remote) ask(ctx context.Context, op string, b Binding) (*Secret, time.Time, error) {
	fail := func(err error) (*Secret, time.Time, error) { return nil, time.Time{}, err }
	if r.Exchange == nil || r.Service == "" {
		return fail(errors.New("remote protector without a service to ask"))
	}
	req := wire.Request{Version: wire.Version, Op: op, Volume: b.Volume, Label: b.Label, Slot: b.Slot}
	var key hpke.PrivateKey
	if op == wire.OpMint || op == wire.OpRelease {
		var err error
		if key, err = wire.KEM().GenerateKey(); err != nil {
			return fail(err)
		}
		req.Key = key.PublicKey().Bytes()
	}
	body, err := json.Marshal(req)
	if err != nil {
		return fail(err)
	}
	asked := time.Now()
	answer, err := r.Exchange(ctx, body)
	if err != nil {
		return fail(fmt.Errorf("%s: %w: %w", r.Service, ErrUnavailable, err))
	}
	rsp, err := wire.ParseResponse(answer)
	if err != nil {
		return fail(fmt.Errorf("%s: response: %w: %w", r.Service, ErrUnavailable, err))
	}
	switch rsp.Status {
	case wire.StatusOK:
	case wire.StatusRevoked:
		return fail(fmt.Errorf("%s: %w: %s", r.Service, ErrRevoked, rsp.Reason))
	case wire.StatusRefused:
		return fail(fmt.Errorf("%s: %w: %s", r.Service, ErrRefused, rsp.Reason))
	default:
		return fail(fmt.Errorf("%s: %w: %s", r.Service, ErrUnavailable, rsp.Reason))
	}
	until := asked.Add(time.Duration(rsp.LeaseSeconds) * time.Second)
	if key == nil {
		return nil, until, nil
	}
	plain, err := hpke.Open(key, wire.KDF(), wire.AEAD(), req.Info(), rsp.Share)
	if err != nil {
		return fail(fmt.Errorf("%s: the share is not sealed to this request: %w", r.Service, ErrTampered))
	}
	s, err := NewSecret(plain)
	return s, until, err
}
