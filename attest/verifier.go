package attest

import (
	"context"
	"crypto"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"

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
	Devices registry.DeviceStore
	// Challenges keeps open challenges. Where strangers may begin to enrol, give
	// the Registrar a store of its own, so that they can't fill this one.
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
// stores', and is safe for concurrent use. The zero value refuses everything.
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
	c.PCRs, c.Extended, c.Appraisers = cloneSelections(c.PCRs), slices.Clone(c.Extended), slices.Clone(c.Appraisers)
	return &Verifier{c}, nil
}

// cloneSelections keeps a policy out of the hands of who has a copy of it.
func cloneSelections(list []quote.Selection) []quote.Selection {
	out := make([]quote.Selection, len(list))
	for i, s := range list {
		out[i] = quote.Selection{Bank: s.Bank, PCRs: slices.Clone(s.PCRs)}
	}
	return out
}

func (v *Verifier) made() error {
	if v == nil || v.c.Devices == nil {
		return errors.New("attest: a Verifier that NewVerifier did not make")
	}
	return nil
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
	if err := errors.Join(v.made(), s.check()); err != nil {
		return nil, err
	}
	if _, err := v.device(ctx, s); err != nil {
		return nil, err
	}
	now := v.c.Now()
	c := &Challenge{
		Version: messageVersion, ID: newID(), Device: s.Device, Purpose: s.Purpose, Nonce: newNonce(),
		PCRs: cloneSelections(v.c.PCRs), Expires: now.Add(v.c.ChallengeTTL),
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
