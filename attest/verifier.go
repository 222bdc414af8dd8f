package attest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/attest/bootid"
	"github.com/trusttree/trusttree/attest/internal/strict"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/attest/registry"
)

const (
	defaultResultTTL = 10 * time.Minute
	maxResultTTL     = 24 * time.Hour
)

// VerifierConfig configures a Verifier. Every field without a default is
// required.
type VerifierConfig struct {
	Devices    registry.DeviceStore
	Challenges registry.ChallengeStore
	// PCRs are demanded in every quote. They decide the bank: a node has no
	// say. The first bank is the one that appraisers see as Input.Bank.
	PCRs []quote.Selection
	// Extended lists PCRs that boot always extends; one that is still all zero
	// or all one speaks against the evidence (an unextended bank, CVE-2021-42299).
	// PCR 0, where it is among PCRs, when nil.
	Extended []int
	// Appraisers judge what the evidence shows. All must be affirming.
	Appraisers []Appraiser
	// Endorsers.MinFirmware is held against each quote.
	Endorsers Endorsers
	// ChallengeTTL is how long a node has to answer: 2 minutes when zero, 10 at
	// most.
	ChallengeTTL time.Duration
	// ResultTTL is how long a Result counts: 10 minutes when zero, 24 hours at
	// most. It is also the node's next deadline.
	ResultTTL time.Duration
	Now       func() time.Time // time.Now when nil
	Log       *slog.Logger     // nothing is logged when nil
}

// Appraiser judges one aspect of evidence: a boot, an inventory of modules. It
// must be pure and safe for concurrent use. What it does not understand it
// must not affirm.
type Appraiser func(ctx context.Context, in Input) Opinion

// Opinion is an appraiser's verdict. The zero value admits nobody.
type Opinion struct {
	Status  Status
	Reasons []Reason
	// Claims are single claims of the AR4SI trustworthiness vector that this
	// opinion is about, such as "configuration" or "executables", for the export
	// of results. A claim that is not affirming speaks against the evidence as
	// Status does, and so does one that AR4SI does not name.
	Claims map[string]Status
}

// Input is what an appraiser may rely on: all of it is covered by a quote of
// the device's own TPM over the verifier's nonce in this TLS session. Bodies
// are covered as bytes that the node sent; what they claim is for the
// appraiser to check against the PCRs.
type Input struct {
	Device   registry.DeviceID
	Purpose  string
	Bank     crypto.Hash                    // the first one demanded
	PCRs     map[int][]byte                 // of Bank
	Banks    map[crypto.Hash]map[int][]byte // of all banks demanded
	Clock    tpm2.TPMSClockInfo
	Firmware uint64
	Nonce    []byte
	Bodies   map[string][]byte // by media type
	// Keys are further signing keys that the device's TPM proved to hold, in the
	// order of NodeConfig.Keys: *ecdsa.PublicKey or *rsa.PublicKey.
	Keys []crypto.PublicKey
	Now  time.Time
}

// Verifier mints challenges and appraises evidence. It keeps no state but the
// stores', and is safe for concurrent use.
type Verifier struct{ c VerifierConfig }

// NewVerifier checks the configuration and returns a Verifier.
func NewVerifier(c VerifierConfig) (*Verifier, error) {
	err := quote.CheckSelection(c.PCRs)
	if err == nil {
		switch {
		case c.Devices == nil || c.Challenges == nil:
			err = errors.New("the stores Devices and Challenges are required")
		case len(c.Appraisers) == 0 || slices.ContainsFunc(c.Appraisers, func(a Appraiser) bool { return a == nil }):
			err = errors.New("no Appraisers: nobody judges what the evidence shows")
		default:
			err = errors.Join(
				ttl(&c.ChallengeTTL, defaultChallengeTTL, maxChallengeTTL, "ChallengeTTL"),
				ttl(&c.ResultTTL, defaultResultTTL, maxResultTTL, "ResultTTL"))
		}
	}
	if err == nil && c.Extended == nil && slices.Contains(c.PCRs[0].PCRs, 0) {
		c.Extended = []int{0}
	}
	for _, p := range c.Extended {
		for _, s := range c.PCRs {
			if err == nil && !slices.Contains(s.PCRs, p) {
				err = fmt.Errorf("PCR %d is in Extended and not demanded of bank %v", p, s.Bank)
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("attest: verifier: %w", err)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Verifier{c}, nil
}

// open is what the ChallengeStore keeps of a Challenge.
type open struct {
	Version  int               `json:"version"`
	Purpose  string            `json:"purpose"`
	Device   registry.DeviceID `json:"device"`
	LeafSPKI []byte            `json:"leaf_spki"`
	Nonce    []byte            `json:"nonce"`
	PCRs     []quote.Selection `json:"pcrs"`
	Minted   time.Time         `json:"minted"`
	Expires  time.Time         `json:"expires"`
}

// Challenge mints a challenge for one node, purpose and TLS session. Its
// Binding is not looked at: the challenge's nonce goes into it. Errors are
// ErrRevoked, ErrKeyMismatch when the session's key is not the one enrolled,
// and those of the stores.
func (v *Verifier) Challenge(ctx context.Context, s Session) (*Challenge, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if _, err := v.device(ctx, s); err != nil {
		return nil, err
	}
	now := v.c.Now()
	c := &Challenge{
		Version: messageVersion, ID: newID(), Device: s.Device, Purpose: s.Purpose, Nonce: newNonce(),
		PCRs: v.c.PCRs, Expires: now.Add(v.c.ChallengeTTL),
	}
	value, err := json.Marshal(open{messageVersion, c.Purpose, c.Device, s.LeafSPKI[:], c.Nonce, c.PCRs, now, c.Expires})
	if err != nil {
		return nil, fmt.Errorf("attest: challenge: %w", err)
	}
	if err := v.c.Challenges.Put(ctx, c.ID, value, c.Expires); err != nil {
		return nil, fmt.Errorf("attest: store challenge: %w", err)
	}
	return c, nil
}

// device returns the registry's entry for a session's device, unless it is
// revoked or the session is with another key.
func (v *Verifier) device(ctx context.Context, s Session) (registry.Device, error) {
	d, err := v.c.Devices.Get(ctx, s.Device)
	if err != nil {
		return d, fmt.Errorf("attest: device %s: %w", s.Device, err)
	}
	return d, admissible(d, s)
}

func admissible(d registry.Device, s Session) error {
	if d.State == registry.Revoked || d.State == registry.Released {
		return reason.Because(reason.Revoked, fmt.Errorf("%w: device %s: %s", ErrRevoked, d.ID, d.Reason))
	}
	if subtle.ConstantTimeCompare(d.KeySPKI, s.LeafSPKI[:]) != 1 {
		return reason.Because(reason.SessionKey, fmt.Errorf("%w: the TLS session of device %s is not with the key enrolled last", ErrKeyMismatch, d.ID))
	}
	return nil
}

// Appraise judges evidence that came over the session s. A Result exists only
// on success. The challenge is used up whatever the outcome. Refusals are
// *AppraisalError, which names every reason and unwraps to its class: broken
// evidence (ErrMalformed, ErrChallenge, ErrExpired, ErrKeyMismatch, the errors
// of package quote) or a violated policy (ErrRevoked, ErrRolledBack, ErrReset,
// ErrFirmware, ErrUnmeasured, ErrNotAffirming). Other errors are the stores'
// and ctx's: nothing was decided, try again with a new challenge.
func (v *Verifier) Appraise(ctx context.Context, s Session, e *Evidence) (*Result, error) {
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
	values, err := ak.VerifyQuote(e.Quote, e.Signature, e.PCRValues, o.PCRs, s.qualifyingData(o.Nonce, s.Binding[:], bodiesDigest(e.Bodies)))
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

// judge collects everything that speaks against evidence which is authentic.
func (v *Verifier) judge(ctx context.Context, d registry.Device, in Input, values quote.Values, minted time.Time, boot string) *AppraisalError {
	// The device is known and its attestation key's TPM proven.
	verdict := &AppraisalError{Status: StatusAffirming, claims: map[string]Status{"instance-identity": StatusAffirming}}
	if err := forward(d, in.Clock, minted); err != nil {
		verdict.add(err)
	} else if err := together(d, in.Clock, boot); err != nil {
		verdict.add(err)
	}
	if err := v.c.Endorsers.firmwareFloor(d.Manufacturer, values); err != nil {
		verdict.add(err)
	}
	for _, sel := range v.c.PCRs {
		for _, p := range v.c.Extended {
			if untouched(in.Banks[sel.Bank][p]) {
				verdict.add(reason.Because(reason.Unmeasured, fmt.Errorf("%w: PCR %d of bank %v", ErrUnmeasured, p, sel.Bank)))
			}
		}
	}
	var notes []Reason // of appraisers that affirm: no reason for a refusal
	for i, a := range v.c.Appraisers {
		o := a(ctx, in)
		o.Status = worst(o)
		if o.Status == StatusAffirming {
			maps.Copy(verdict.claims, o.Claims)
			notes = append(notes, o.Reasons...)
		} else {
			verdict.Reasons = append(verdict.Reasons, o.Reasons...)
			verdict.causes = append(verdict.causes, fmt.Errorf("%w: appraiser %d says %v", ErrNotAffirming, i+1, o.Status))
			if len(o.Reasons) == 0 {
				verdict.Reasons = append(verdict.Reasons, Reason{"no-reason", fmt.Sprintf("appraiser %d says %v", i+1, o.Status)})
			}
			verdict.Status = max(verdict.Status, o.Status)
		}
	}
	if len(verdict.causes) == 0 {
		verdict.Reasons = notes
	}
	return verdict
}

// claimNames are the claims of the trustworthiness vector (draft-ietf-rats-ar4si).
var claimNames = [...]string{
	"instance-identity", "configuration", "executables", "file-system", "hardware", "runtime-opaque", "storage-opaque", "sourced-data",
}

// worst is an opinion's status with its claims taken into account: an opinion
// does not affirm while a claim of its own says otherwise, or says nothing that
// is known.
func worst(o Opinion) Status {
	status := o.Status
	for name, s := range o.Claims {
		switch {
		case !slices.Contains(claimNames[:], name) || s != StatusAffirming && s != StatusWarning && s != StatusContraindicated:
			status = max(status, StatusContraindicated)
		case s != StatusAffirming && status != StatusNone:
			status = max(status, s)
		}
	}
	return status
}

// forward returns ErrRolledBack when a TPM's clock or counters are behind what
// was seen before: a clone, or a restored state. Evidence that answers a
// challenge minted before the last appraisal may be the older of two that were
// under way together, so its clock alone does not tell.
func forward(d registry.Device, c tpm2.TPMSClockInfo, minted time.Time) error {
	switch {
	case c.ResetCount < d.ResetCount:
		return reason.Because(reason.ResetCount, fmt.Errorf("%w: reset count %d after %d", ErrRolledBack, c.ResetCount, d.ResetCount))
	case c.ResetCount == d.ResetCount && c.RestartCount < d.RestartCount:
		return reason.Because(reason.RestartCount, fmt.Errorf("%w: restart count %d after %d", ErrRolledBack, c.RestartCount, d.RestartCount))
	case c.ResetCount == d.ResetCount && c.RestartCount == d.RestartCount && c.Clock < d.Clock && minted.After(d.Appraised):
		return reason.Because(reason.Clock, fmt.Errorf("%w: clock %d ms after %d ms", ErrRolledBack, c.Clock, d.Clock))
	}
	return nil
}

// bootOf returns the boot ID in evidence, or "" without any.
func bootOf(bodies []Body) (string, error) {
	for _, b := range bodies {
		if b.MediaType == bootid.MediaType {
			id, err := bootid.Parse(b.Data)
			if err != nil {
				return "", reason.Because(reason.Malformed, fmt.Errorf("%w: %w", ErrMalformed, err))
			}
			return id, nil
		}
	}
	return "", nil
}

// together returns ErrReset unless TPM and machine started anew together since
// the last appraisal, or neither did. It says nothing of devices that never
// showed a boot ID.
func together(d registry.Device, c tpm2.TPMSClockInfo, boot string) error {
	switch reset := c.ResetCount != d.ResetCount; {
	case d.BootID == "":
		return nil
	case boot == "":
		return reason.Because(reason.NoBootID, fmt.Errorf("%w: device %s sends no boot ID any more: revoke and release it if that is meant", ErrReset, d.ID))
	case reset && boot == d.BootID:
		return reason.Because(reason.ResetWithoutReboot, fmt.Errorf("%w: reset count %d after %d in one boot: something reset the TPM of device %s beside the machine", ErrReset, c.ResetCount, d.ResetCount, d.ID))
	case !reset && boot != d.BootID:
		return reason.Because(reason.RebootWithoutReset, fmt.Errorf("%w: device %s has booted and its TPM was not reset: still reset count %d", ErrReset, d.ID, c.ResetCount))
	}
	return nil
}

// sameBoot returns the clock seen last when it was in the same boot, else 0.
func sameBoot(d registry.Device, c tpm2.TPMSClockInfo) uint64 {
	if c.ResetCount == d.ResetCount && c.RestartCount == d.RestartCount {
		return d.Clock
	}
	return 0
}

func untouched(v []byte) bool {
	return !slices.ContainsFunc(v, func(b byte) bool { return b != 0 }) || !slices.ContainsFunc(v, func(b byte) bool { return b != 0xff })
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

// refused logs a refusal, and notes a violated policy in the registry. Broken
// evidence is not noted: anybody can send it.
func (v *Verifier) refused(ctx context.Context, s Session, err error) {
	v.c.Log.WarnContext(ctx, "evidence refused", "event", "attest.evidence-refused", "device", s.Device.String(), "purpose", s.Purpose, "error", err.Error())
	var a *AppraisalError
	if !errors.As(err, &a) || a.Broken || errors.Is(err, ErrRevoked) {
		return
	}
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
