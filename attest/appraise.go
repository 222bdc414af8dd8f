package attest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/trusttree/trusttree/attest/internal/strict"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/attest/registry"
)

// Appraise judges evidence that came over the session s. A Result exists only
// on success. The challenge is used up whatever the outcome. Refusals are
// *AppraisalError, which names every reason and unwraps to its class: broken
// evidence (ErrMalformed, ErrChallenge, ErrExpired, ErrKeyMismatch, the errors
// of package quote) or a violated policy (ErrRevoked, ErrRolledBack, ErrReset,
// ErrFirmware, ErrUnmeasured, ErrNotAffirming). Other errors are the stores'
// and ctx's: nothing was decided, try again with a new challenge.
func (v *Verifier) Appraise(ctx context.Context, s Session, e *Evidence) (*Result, error) {
	if err := v.made(); err != nil {
		return nil, err
	}
	r, err := v.appraise(ctx, s, e)
	if err != nil {
		v.refused(ctx, s, err)
		return nil, err
	}
	v.c.Log.InfoContext(ctx, "evidence affirmed", "event", "attest.appraised", "device", s.Device.String(), "purpose", s.Purpose)
	return r, nil
}

func (v *Verifier) appraise(ctx context.Context, s Session, e *Evidence) (*Result, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if s.Binding == [32]byte{} {
		return nil, reason.Because(reason.NoBinding, errors.New("attest: session: no binding to the TLS session"))
	}
	if err := check(e); err != nil {
		return nil, broken(err)
	}
	now := v.c.Now()
	o, err := v.take(ctx, s, e.Challenge, now)
	if err != nil {
		return nil, err
	}
	d, err := v.device(ctx, s)
	if err != nil {
		return nil, refusal(err)
	}
	ak, err := quote.ParseKey(d.AKPublic)
	if err != nil {
		return nil, fmt.Errorf("attest: device %s: stored attestation key: %w", d.ID, err)
	}
	values, err := ak.VerifyQuote(e.Quote, e.Signature, bytes.Clone(e.PCRValues), o.PCRs, s.qualifyingData(o.Nonce, s.Binding[:], bodiesDigest(e.Bodies)))
	if err != nil {
		return nil, broken(err)
	}
	keys, err := verifyKeys(ak, s, o.Nonce, e.Bodies)
	if err != nil {
		return nil, broken(err)
	}
	boot, err := bootOf(e.Bodies)
	if err != nil {
		return nil, broken(err)
	}
	in := v.input(s, o, e, values, now)
	in.Keys = keys
	verdict := v.judge(ctx, d, in, values, o.Minted, boot)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("attest: appraise %s: %w", d.ID, err)
	}
	if len(verdict.causes) > 0 {
		return nil, verdict
	}
	deadline := now.Add(v.c.ResultTTL)
	judged := d.AKPublic
	err = update(ctx, v.c.Devices, d.ID, func(d *registry.Device) error { // revocation counts up to the verdict
		if err := admissible(*d, s); err != nil {
			return refusal(err)
		}
		if !bytes.Equal(d.AKPublic, judged) { // released and enrolled anew meanwhile
			return refusal(reason.Because(reason.AttestationKey, fmt.Errorf("%w: device %s has another attestation key by now", ErrKeyMismatch, d.ID)))
		}
		if err := forward(*d, in.Clock, o.Minted); err != nil {
			return refusal(err)
		}
		if err := together(*d, in.Clock, boot); err != nil {
			return refusal(err)
		}
		d.State, d.Reason, d.BootID = registry.Affirming, "", boot
		d.Appraised, d.Deadline = now, deadline
		d.Clock, d.ResetCount, d.RestartCount, d.Firmware = max(in.Clock.Clock, sameBoot(*d, in.Clock)), in.Clock.ResetCount, in.Clock.RestartCount, in.Firmware
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &Result{device: d.ID, purpose: s.Purpose, leafSPKI: s.LeafSPKI, values: values, issued: now, expires: deadline, reasons: verdict.Reasons, claims: verdict.claims}, nil
}

// take uses a challenge up and checks that it was minted for this session.
func (v *Verifier) take(ctx context.Context, s Session, id string, now time.Time) (*open, error) {
	value, err := v.c.Challenges.Take(ctx, id)
	if errors.Is(err, registry.ErrNotFound) {
		return nil, broken(reason.Because(reason.NoChallenge, ErrChallenge))
	}
	if err != nil {
		return nil, fmt.Errorf("attest: take challenge: %w", err)
	}
	o := &open{}
	switch err := strict.Decode(value, o); {
	case err != nil || o.Version != messageVersion || len(o.Nonce) != nonceSize || quote.CheckSelection(o.PCRs) != nil:
		return nil, broken(reason.Because(reason.StoredChallenge, fmt.Errorf("%w: stored challenge can't be read", ErrChallenge)))
	case o.Device != s.Device:
		return nil, broken(reason.Because(reason.OtherDevice, fmt.Errorf("%w: it was minted for another device", ErrChallenge)))
	case o.Purpose != s.Purpose:
		return nil, broken(reason.Because(reason.OtherPurpose, fmt.Errorf("%w: it was minted for purpose %q", ErrChallenge, o.Purpose)))
	case subtle.ConstantTimeCompare(o.LeafSPKI, s.LeafSPKI[:]) != 1:
		return nil, broken(reason.Because(reason.OtherSession, fmt.Errorf("%w: it was minted for a session with another key", ErrChallenge)))
	case !now.Before(o.Expires):
		return nil, broken(reason.Because(reason.Expired, ErrExpired))
	case !slices.EqualFunc(o.PCRs, v.c.PCRs, func(a, b quote.Selection) bool { return a.Bank == b.Bank && slices.Equal(a.PCRs, b.PCRs) }):
		return nil, broken(reason.Because(reason.OtherPolicy, fmt.Errorf("%w: it demands other PCRs than this policy: an instance that was configured otherwise minted it", ErrChallenge)))
	}
	return o, nil
}

func (v *Verifier) input(s Session, o *open, e *Evidence, values quote.Values, now time.Time) Input {
	in := Input{
		Device: s.Device, Purpose: s.Purpose, Bank: o.PCRs[0].Bank, Banks: map[crypto.Hash]map[int][]byte{},
		Clock: values.Clock(), Firmware: values.Firmware(), Nonce: o.Nonce, Bodies: make(map[string][]byte, len(e.Bodies)), Now: now,
	}
	for _, sel := range o.PCRs {
		in.Banks[sel.Bank] = values.Bank(sel.Bank)
	}
	in.PCRs = in.Banks[in.Bank]
	for _, b := range e.Bodies {
		in.Bodies[b.MediaType] = b.Data
	}
	return in
}

func refusal(err error) error {
	switch {
	case errors.Is(err, ErrKeyMismatch):
		return broken(err)
	case errors.Is(err, ErrRevoked), errors.Is(err, ErrRolledBack), errors.Is(err, ErrReset):
		return violated(err)
	}
	return err
}

// noting is how long a refusal may take to be noted after the peer hung up.
const noting = time.Second

// refused logs a refusal, and notes a violated policy in the registry, also for
// a peer that hung up. Broken evidence is not noted: anybody can send it.
func (v *Verifier) refused(ctx context.Context, s Session, err error) {
	v.c.Log.WarnContext(ctx, "evidence refused", "event", "attest.evidence-refused", "device", s.Device.String(), "purpose", s.Purpose, "error", err.Error())
	var a *AppraisalError
	if !errors.As(err, &a) || a.Broken || errors.Is(err, ErrRevoked) {
		return
	}
	peer := ctx
	ctx, cancel := context.WithCancel(context.WithoutCancel(peer))
	defer cancel()
	defer context.AfterFunc(peer, func() { time.AfterFunc(noting, cancel) })()
	if err := update(ctx, v.c.Devices, s.Device, func(d *registry.Device) error {
		if d.State == registry.Revoked || d.State == registry.Released {
			return ErrRevoked
		}
		d.State, d.Reason = registry.Failing, a.Error()
		return nil
	}); err != nil && !errors.Is(err, ErrRevoked) {
		v.c.Log.ErrorContext(ctx, "failed appraisal not noted", "event", "attest.registry-error", "device", s.Device.String(), "error", err.Error())
	}
}
