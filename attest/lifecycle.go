package attest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/attest/registry"
)

// Revoke shuts a device out: no enrolment, no challenge and no verdict for it
// from now on. reason is for people. Revoking a device that was never enrolled
// is registry.ErrNotFound.
func (r *Registrar) Revoke(ctx context.Context, id registry.DeviceID, reason string) error {
	if err := r.made(); err != nil {
		return err
	}
	err := update(ctx, r.c.Devices, id, func(d *registry.Device) error {
		d.State, d.Reason = registry.Revoked, reason
		return nil
	})
	if err == nil {
		r.c.Log.WarnContext(ctx, "device revoked", "event", "attest.revoked", "device", id.String(), "reason", reason)
	}
	return err
}

// Release lets a revoked device enrol anew, as the owner's explicit decision
// after a repair or when its TPM was cleared. A device that is not revoked is
// ErrBound.
func (r *Registrar) Release(ctx context.Context, id registry.DeviceID) error {
	if err := r.made(); err != nil {
		return err
	}
	err := update(ctx, r.c.Devices, id, func(d *registry.Device) error {
		if d.State != registry.Revoked {
			return reason.Because(reason.NotRevoked, fmt.Errorf("%w: device %s is %s: revoke it first", ErrBound, id, d.State))
		}
		d.State, d.Reason, d.KeySPKI = registry.Released, "", nil
		return nil
	})
	if err == nil {
		r.c.Log.WarnContext(ctx, "device released", "event", "attest.released", "device", id.String())
	}
	return err
}

// Renew issues a new certificate for the TLS key of a node that has just
// attested: result is its verdict, csr comes from DeviceKey.CSR. Errors are
// ErrExpired when the result is, ErrMalformed, ErrKeyMismatch, ErrRevoked and
// those of stores and issuer.
func (r *Registrar) Renew(ctx context.Context, result *Result, csr []byte) (*Enrollment, error) {
	if err := r.made(); err != nil {
		return nil, err
	}
	now := r.c.Now()
	if result == nil || !now.Before(result.expires) || result.device == (registry.DeviceID{}) {
		return nil, reason.Because(reason.Expired, fmt.Errorf("%w: no fresh attestation result", ErrExpired))
	}
	req, err := parseCSR(csr)
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(req.RawSubjectPublicKeyInfo) != result.leafSPKI {
		return nil, reason.Because(reason.CSRKey, fmt.Errorf("%w: the certificate request is not for the key that attested", ErrKeyMismatch))
	}
	to := now.Add(r.c.CertificateTTL)
	if err := update(ctx, r.c.Devices, result.device, func(d *registry.Device) error {
		if err := admissible(*d, Session{LeafSPKI: result.leafSPKI}); err != nil {
			return err
		}
		if d.State != registry.Affirming {
			return fmt.Errorf("%w: device %s is %s", ErrNotAffirming, d.ID, d.State)
		}
		d.Expires = to
		return nil
	}); err != nil {
		return nil, err
	}
	return r.issue(ctx, Session{Device: result.device, LeafSPKI: result.leafSPKI}, req.PublicKey, now, to)
}

// update changes a device with compare-and-swap, trying again when somebody
// else was faster.
func update(ctx context.Context, s registry.DeviceStore, id registry.DeviceID, f func(*registry.Device) error) error {
	for range maxConflicts {
		d, err := s.Get(ctx, id)
		if err != nil {
			return fmt.Errorf("attest: device %s: %w", id, err)
		}
		if err := f(&d); err != nil {
			return err
		}
		if _, err = s.Put(ctx, d); err == nil {
			return nil
		}
		if !errors.Is(err, registry.ErrConflict) {
			return fmt.Errorf("attest: device %s: %w", id, err)
		}
	}
	return fmt.Errorf("attest: device %s: %w", id, registry.ErrConflict)
}
