package attest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/attest/registry"
)

// Defaults and limits of times, on the cloud's side.
const (
	defaultChallengeTTL = 2 * time.Minute
	maxChallengeTTL     = 10 * time.Minute
	defaultCertTTL      = 24 * time.Hour
	maxCertTTL          = 24 * time.Hour
	backdate            = time.Minute // how much a certificate's start lies back, for clocks that differ
	maxConflicts        = 16          // how often a lost compare-and-swap is tried again
)

// RegistrarConfig configures a Registrar. Every field without a default is
// required.
type RegistrarConfig struct {
	Endorsers Endorsers
	// Admit is the owner's decision whether a TPM may become one of his nodes.
	// It is asked when an enrolment begins, and once more with Proven set when
	// the TPM has proven itself: the moment to use a token up, for that device,
	// so that the device may come again with it when its answer gets lost. Any
	// error refuses.
	Admit      func(ctx context.Context, a Applicant) error
	Devices    registry.DeviceStore
	Challenges registry.ChallengeStore
	Issuer     Issuer
	// TrustDomain is the SPIFFE trust domain of the nodes' names.
	TrustDomain string
	// CertificateTTL is how long issued certificates are valid: 24 hours when
	// zero, which is also the most.
	CertificateTTL time.Duration
	// ChallengeTTL is how long a node has to answer: 2 minutes when zero, 10 at
	// most.
	ChallengeTTL time.Duration
	Now          func() time.Time // time.Now when nil
	Log          *slog.Logger     // nothing is logged when nil
}

// Applicant is who asks to be enrolled.
type Applicant struct {
	Endorsement *Endorsement
	Token       []byte // as the node sent it, up to 1 KiB; nil when none
	// Proven says that the TPM has answered the challenge.
	Proven bool
}

// Registrar enrols nodes: it binds a device's identity to the TPM that holds
// its endorsement key, and has the owner's certificate issued. It keeps no
// state but the stores', and is safe for concurrent use. The zero value refuses
// everybody.
type Registrar struct{ c RegistrarConfig }

// NewRegistrar checks the configuration and returns a Registrar.
func NewRegistrar(c RegistrarConfig) (*Registrar, error) {
	var err error
	switch {
	case len(c.Endorsers.Anchors) == 0:
		err = errors.New("no Endorsers.Anchors: no TPM could enrol")
	case slices.Contains(c.Endorsers.Anchors, nil) || slices.Contains(c.Endorsers.Intermediates, nil):
		err = errors.New("a certificate in Endorsers is nil")
	case c.Admit == nil:
		err = errors.New("no Admit: nobody decides who may enrol")
	case c.Devices == nil || c.Challenges == nil:
		err = errors.New("the stores Devices and Challenges are required")
	case c.Issuer == nil:
		err = errors.New("no Issuer")
	default:
		err = checkTrustDomain(c.TrustDomain)
	}
	if err == nil {
		err = errors.Join(
			ttl(&c.CertificateTTL, defaultCertTTL, maxCertTTL, "CertificateTTL"),
			ttl(&c.ChallengeTTL, defaultChallengeTTL, maxChallengeTTL, "ChallengeTTL"))
	}
	if err != nil {
		return nil, fmt.Errorf("attest: registrar: %w", err)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Registrar{c}, nil
}

func (r *Registrar) made() error {
	if r == nil || r.c.Devices == nil {
		return errors.New("attest: a Registrar that NewRegistrar did not make")
	}
	return nil
}

func ttl(d *time.Duration, def, most time.Duration, name string) error {
	if *d == 0 {
		*d = def
	}
	if *d < time.Second || *d > most {
		return fmt.Errorf("%s is %v, want 1s to %v", name, *d, most)
	}
	return nil
}

// Begin answers an EnrollmentRequest with a challenge that only the TPM with
// the endorsement key and the attestation key can open. Errors are
// ErrMalformed, ErrUntrustedEK, ErrNotAdmitted, ErrRevoked, ErrBound,
// quote.ErrKey and those of the stores.
func (r *Registrar) Begin(ctx context.Context, req *EnrollmentRequest) (*ActivationChallenge, error) {
	if err := r.made(); err != nil {
		return nil, err
	}
	c, err := r.begin(ctx, req)
	if err != nil {
		r.c.Log.WarnContext(ctx, "enrolment refused", "event", "attest.enroll-refused", "step", "begin", "error", err.Error())
	}
	return c, err
}

func (r *Registrar) begin(ctx context.Context, req *EnrollmentRequest) (*ActivationChallenge, error) {
	if err := check(req); err != nil {
		return nil, err
	}
	now := r.c.Now()
	en, err := r.c.Endorsers.Verify(req.EKCertificates, now)
	if err != nil {
		return nil, err
	}
	ak, err := quote.ParseKey(req.AKPublic)
	if err != nil {
		return nil, err
	}
	if _, err := r.entry(ctx, en, req.AKPublic); err != nil {
		return nil, err
	}
	if err := r.c.Admit(ctx, Applicant{Endorsement: en, Token: req.Token}); err != nil {
		return nil, fmt.Errorf("%w: device %s: %w", ErrNotAdmitted, en.device, err)
	}
	secret := make([]byte, 32)
	defer clear(secret)
	rand.Read(secret)
	credential, seed, err := makeCredential(en.cert.PublicKey, ak.Name(), secret)
	if err != nil {
		return nil, fmt.Errorf("attest: make credential: %w", err)
	}
	hash := sha256.Sum256(secret)
	p := pending{
		Version: messageVersion, Purpose: purposeEnroll, Device: en.device, Nonce: newNonce(),
		Expires: now.Add(r.c.ChallengeTTL), SecretHash: hash[:], Chain: req.EKCertificates, AKPublic: req.AKPublic, Token: req.Token,
	}
	id, err := r.put(ctx, p)
	if err != nil {
		return nil, err
	}
	return &ActivationChallenge{
		Version: messageVersion, ID: id, Device: en.device, Nonce: p.Nonce, Credential: credential, Secret: seed, Expires: p.Expires,
	}, nil
}

// entry returns the registry's entry for an endorsed TPM with an attestation
// key, new or stored. It refuses a revoked device and another key.
func (r *Registrar) entry(ctx context.Context, en *Endorsement, akPublic []byte) (registry.Device, error) {
	d, err := r.c.Devices.Get(ctx, en.device)
	if errors.Is(err, registry.ErrNotFound) {
		return registry.Device{ID: en.device, EKCertificate: en.cert.Raw, AKPublic: akPublic, Manufacturer: en.manufacturer}, nil
	}
	if err != nil {
		return d, fmt.Errorf("attest: device %s: %w", en.device, err)
	}
	switch d.State {
	case registry.Revoked:
		return d, reason.Because(reason.Revoked, fmt.Errorf("%w: device %s: %s", ErrRevoked, d.ID, d.Reason))
	case registry.Released:
		return registry.Device{Version: d.Version, ID: en.device, EKCertificate: en.cert.Raw, AKPublic: akPublic, Manufacturer: en.manufacturer}, nil
	}
	if !bytes.Equal(d.AKPublic, akPublic) {
		return d, reason.Because(reason.Bound, fmt.Errorf("%w: device %s has another attestation key: revoke and release it to enrol it anew", ErrBound, d.ID))
	}
	return d, nil
}

// Complete checks a node's answer, binds the device, and has its certificate
// issued. The challenge is used up whatever the outcome. Errors are
// ErrMalformed, ErrChallenge, ErrExpired, ErrActivation, ErrKeyMismatch,
// ErrNotAdmitted, ErrRevoked, ErrBound, those of package quote, and those of
// stores and issuer.
func (r *Registrar) Complete(ctx context.Context, rsp *ActivationResponse) (*Enrollment, error) {
	if err := r.made(); err != nil {
		return nil, err
	}
	e, err := r.complete(ctx, rsp)
	if err != nil {
		r.c.Log.WarnContext(ctx, "enrolment refused", "event", "attest.enroll-refused", "step", "complete", "error", err.Error())
		return nil, err
	}
	r.c.Log.InfoContext(ctx, "device enrolled", "event", "attest.enrolled", "device", e.Device.String(), "expires", e.Expires)
	return e, nil
}

func (r *Registrar) complete(ctx context.Context, rsp *ActivationResponse) (*Enrollment, error) {
	if err := check(rsp); err != nil {
		return nil, err
	}
	now := r.c.Now()
	p, err := takePending(ctx, r.c.Challenges, rsp.ID, purposeEnroll, now)
	if err != nil {
		return nil, err
	}
	if hash := sha256.Sum256(rsp.Secret); subtle.ConstantTimeCompare(hash[:], p.SecretHash) != 1 {
		return nil, reason.Because(reason.WrongSecret, ErrActivation)
	}
	ak, err := quote.ParseKey(p.AKPublic)
	if err != nil {
		return nil, err
	}
	return r.admit(ctx, p, ak, rsp.KeyPublic, rsp.Certify, rsp.Signature, rsp.CSR, now)
}

// admit finishes an enrolment whose TPM has proven the attestation key: it
// checks the TLS key, asks the owner, binds and issues.
func (r *Registrar) admit(ctx context.Context, p *pending, ak *quote.Key, keyPublic, certify, signature, request []byte, now time.Time) (*Enrollment, error) {
	en, err := r.c.Endorsers.Verify(p.Chain, now)
	if err != nil {
		return nil, err
	}
	csr, err := parseCSR(request)
	if err != nil {
		return nil, err
	}
	spki := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	key, err := ak.VerifyCertify(certify, signature, keyPublic, enrollBinding(p.Purpose, p.Device, p.Nonce, spki))
	if err != nil {
		return nil, err
	}
	if k, ok := key.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(csr.PublicKey) {
		return nil, reason.Because(reason.CSRKey, fmt.Errorf("%w: the certificate request is for another key", ErrKeyMismatch))
	}
	if err := r.c.Admit(ctx, Applicant{Endorsement: en, Token: p.Token, Proven: true}); err != nil {
		return nil, fmt.Errorf("%w: device %s: %w", ErrNotAdmitted, en.device, err)
	}
	to := now.Add(r.c.CertificateTTL)
	if err := r.bind(ctx, en, p.AKPublic, spki, now, to); err != nil {
		return nil, err
	}
	return r.issue(ctx, Session{Device: en.device, LeafSPKI: spki}, key, now, to)
}

// enrollBinding is the qualifying data of certifications at enrolment.
func enrollBinding(purpose string, id registry.DeviceID, nonce []byte, spki [32]byte) []byte {
	return Session{Device: id, Purpose: purpose, LeafSPKI: spki}.qualifyingData(nonce, nil, bodiesDigest(nil))
}

// bind writes the device with compare-and-swap. It looks at the entry anew
// each time, so that a revocation or a binding made meanwhile counts.
func (r *Registrar) bind(ctx context.Context, en *Endorsement, akPublic []byte, spki [32]byte, now, to time.Time) error {
	for range maxConflicts {
		d, err := r.entry(ctx, en, akPublic)
		if err != nil {
			return err
		}
		if d.State == "" {
			d.Enrolled = now
		}
		if !bytes.Equal(d.KeySPKI, spki[:]) { // what another TLS key was affirmed for does not count for this one
			d.State, d.Reason, d.Deadline = registry.Enrolled, "", time.Time{}
		}
		d.KeySPKI, d.Expires = spki[:], to
		if _, err = r.c.Devices.Put(ctx, d); err == nil {
			return nil
		}
		if !errors.Is(err, registry.ErrConflict) {
			return fmt.Errorf("attest: device %s: %w", en.device, err)
		}
	}
	return fmt.Errorf("attest: device %s: %w", en.device, registry.ErrConflict)
}

// issue has a certificate signed for the key of s. An issuer may take its time:
// who was revoked meanwhile gets none.
func (r *Registrar) issue(ctx context.Context, s Session, key crypto.PublicKey, now, to time.Time) (*Enrollment, error) {
	id := s.Device
	template, err := leafTemplate(r.c.TrustDomain, id, now.Add(-backdate), to)
	if err != nil {
		return nil, fmt.Errorf("attest: certificate of %s: %w", id, err)
	}
	req := IssueRequest{Device: id, Template: template, Key: key}
	chain, err := r.c.Issuer.Issue(ctx, req)
	if err == nil {
		err = checkIssued(req, chain)
	}
	if err != nil {
		return nil, fmt.Errorf("attest: certificate of %s: %w", id, err)
	}
	d, err := r.c.Devices.Get(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("attest: device %s: %w", id, err)
	}
	if err := admissible(d, s); err != nil {
		return nil, err
	}
	e := &Enrollment{Version: messageVersion, Device: id, Expires: chain[0].NotAfter}
	for _, c := range chain {
		e.Chain = append(e.Chain, c.Raw)
	}
	return e, nil
}

// parseCSR parses a certificate request and checks that its sender has the
// key. Only the key is taken from it.
func parseCSR(der []byte) (*x509.CertificateRequest, error) {
	if len(der) > maxCertificate {
		return nil, reason.Because(reason.TooLarge, fmt.Errorf("%w: certificate request of %d bytes, limit %d", ErrMalformed, len(der), maxCertificate))
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, reason.Because(reason.Malformed, fmt.Errorf("%w: certificate request: %w", ErrMalformed, err))
	}
	if err := checkKeySize(csr.PublicKey); err != nil {
		return nil, reason.Because(reason.TooLarge, fmt.Errorf("%w: certificate request: %w", ErrMalformed, err))
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, reason.Because(reason.CSRSignature, fmt.Errorf("%w: certificate request: %w", ErrKeyMismatch, err))
	}
	return csr, nil
}
