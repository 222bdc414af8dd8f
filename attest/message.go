package attest

import (
	"encoding/json"
	"fmt"
	"reflect"
	"time"

	"github.com/trusttree/trusttree/attest/ekimport"
	"github.com/trusttree/trusttree/attest/internal/strict"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/attest/registry"
)

// Version of the messages that this package writes. It reads this version
// and, once there is one, its predecessor.
const messageVersion = 1

// Sizes of encoded messages in bytes; Parse refuses larger ones before it
// looks at them.
const (
	// MaxMessage is the largest message other than Evidence.
	MaxMessage = 64 << 10
	// MaxEvidence is the largest Evidence, with its logs.
	MaxEvidence = 16 << 20
)

// EnrollmentRequest opens an enrolment (node to cloud, POST /v1/enroll/begin).
type EnrollmentRequest struct {
	Version int `json:"version"`
	// EKCertificates is the endorsement key's certificate (DER) and, after it,
	// issuers that the TPM or the node holds.
	EKCertificates [][]byte `json:"ek_certificates"`
	// AKPublic is the attestation key's TPMT_PUBLIC.
	AKPublic []byte `json:"ak_public"`
	// Token is what the owner gave the node to be admitted, if anything.
	Token []byte `json:"token,omitempty"`
}

// ActivationChallenge answers an EnrollmentRequest: only the TPM that holds
// both the endorsement key and the attestation key can open Credential
// (TPM2_ActivateCredential).
type ActivationChallenge struct {
	Version    int               `json:"version"`
	ID         string            `json:"id"`
	Device     registry.DeviceID `json:"device"`
	Nonce      []byte            `json:"nonce"`      // 32 bytes
	Credential []byte            `json:"credential"` // TPMS_ID_OBJECT, the content of a TPM2B_ID_OBJECT
	Secret     []byte            `json:"secret"`     // encrypted seed, the content of a TPM2B_ENCRYPTED_SECRET
	Expires    time.Time         `json:"expires"`
}

// ActivationResponse closes an enrolment (node to cloud, POST
// /v1/enroll/complete).
type ActivationResponse struct {
	Version   int    `json:"version"`
	ID        string `json:"id"`
	Secret    []byte `json:"secret"`     // what ActivateCredential released
	KeyPublic []byte `json:"key_public"` // TPMT_PUBLIC of the TLS key
	Certify   []byte `json:"certify"`    // TPMS_ATTEST by the attestation key
	Signature []byte `json:"signature"`  // TPMT_SIGNATURE over Certify
	CSR       []byte `json:"csr"`        // PKCS #10 (DER), signed by the TLS key
}

// Enrollment is the owner's certificate for a node.
type Enrollment struct {
	Version int               `json:"version"`
	Device  registry.DeviceID `json:"device"`
	Chain   [][]byte          `json:"chain"` // DER, leaf first, without the root
	Expires time.Time         `json:"expires"`
}

// Challenge asks a node for Evidence.
type Challenge struct {
	Version int               `json:"version"`
	ID      string            `json:"id"`
	Device  registry.DeviceID `json:"device"`
	Purpose string            `json:"purpose"`
	Nonce   []byte            `json:"nonce"` // 32 bytes, also the context of the TLS exporter
	PCRs    []quote.Selection `json:"pcrs"`
	Expires time.Time         `json:"expires"`
}

// Evidence answers a Challenge: a quote and what explains it.
type Evidence struct {
	Version   int    `json:"version"`
	Challenge string `json:"challenge"`  // ID of the Challenge
	Quote     []byte `json:"quote"`      // TPMS_ATTEST
	Signature []byte `json:"signature"`  // TPMT_SIGNATURE over Quote
	PCRValues []byte `json:"pcr_values"` // digests in the order of the Challenge's selection, without indices
	Bodies    []Body `json:"bodies"`     // in ascending order of media type, each once
}

// Body is what one Collector contributed to Evidence.
type Body struct {
	MediaType string `json:"media_type"`
	Data      []byte `json:"data"`
}

// Limits of single fields.
const (
	maxCertificates = 8
	maxCertificate  = 8 << 10
	maxToken        = 1 << 10
	maxID           = 64
	maxBodies       = 32
	maxMediaType    = 128
	maxBodyBytes    = 11 << 20 // of all bodies together: as text they fit MaxEvidence
	maxTPM          = 1 << 10
	nonceSize       = 32
)

// Message is any message of this package and of package ekimport.
type Message interface {
	EnrollmentRequest | ActivationChallenge | ActivationResponse | Enrollment | Challenge | Evidence |
		ekimport.Challenge | ekimport.Response
}

// Parse decodes a message strictly: unknown, repeated and oversized fields,
// another version, and trailing data are errors, all ErrMalformed. What it
// returns has not been verified: only Registrar and Verifier say what of it is
// true.
func Parse[M Message](data []byte) (*M, error) {
	m := new(M)
	limit := MaxMessage
	if _, ok := any(m).(*Evidence); ok {
		limit = MaxEvidence
	}
	if len(data) > limit {
		return nil, reason.Because(reason.TooLarge, fmt.Errorf("%w: message of %d bytes, limit %d", ErrMalformed, len(data), limit))
	}
	if err := strict.Decode(data, m); err != nil {
		return nil, reason.Because(reason.Malformed, fmt.Errorf("%w: %T: %w", ErrMalformed, *m, err))
	}
	if err := check(m); err != nil {
		return nil, err
	}
	return m, nil
}

// Marshal encodes a message with its version.
func Marshal[M Message](m *M) ([]byte, error) {
	c := *m
	switch m := any(&c).(type) {
	case *EnrollmentRequest:
		m.Version = messageVersion
	case *ActivationChallenge:
		m.Version = messageVersion
	case *ActivationResponse:
		m.Version = messageVersion
	case *Enrollment:
		m.Version = messageVersion
	case *Challenge:
		m.Version = messageVersion
	case *Evidence:
		m.Version = messageVersion
	case *ekimport.Challenge:
		m.Version = messageVersion
	case *ekimport.Response:
		m.Version = messageVersion
	}
	if err := check(&c); err != nil {
		return nil, err
	}
	return json.Marshal(&c)
}

// check holds a message's limits. Everything that takes a message calls it,
// however the message came.
func check(m any) error {
	var f fields
	if reflect.ValueOf(m).IsNil() {
		return reason.Because(reason.Malformed, fmt.Errorf("%w: no %T", ErrMalformed, m))
	}
	switch m := m.(type) {
	case *EnrollmentRequest:
		f.version(m.Version)
		f.certificates(m.EKCertificates)
		f.size("ak_public", m.AKPublic, 1, maxTPM)
		f.size("token", m.Token, 0, maxToken)
	case *ActivationChallenge:
		f.version(m.Version)
		f.id(m.ID)
		f.size("nonce", m.Nonce, nonceSize, nonceSize)
		f.size("credential", m.Credential, 1, maxTPM)
		f.size("secret", m.Secret, 1, maxTPM)
	case *ActivationResponse:
		f.version(m.Version)
		f.id(m.ID)
		f.size("secret", m.Secret, 1, 64)
		f.size("key_public", m.KeyPublic, 1, maxTPM)
		f.size("certify", m.Certify, 1, maxTPM)
		f.size("signature", m.Signature, 1, maxTPM)
		f.size("csr", m.CSR, 1, maxCertificate)
	case *Enrollment:
		f.version(m.Version)
		f.certificates(m.Chain)
	case *Challenge:
		f.version(m.Version)
		f.id(m.ID)
		f.purpose(m.Purpose)
		f.size("nonce", m.Nonce, nonceSize, nonceSize)
		if f.err == nil {
			f.err = quote.CheckSelection(m.PCRs)
			f.code = reason.Of(f.err)
		}
	case *Evidence:
		f.version(m.Version)
		f.id(m.Challenge)
		f.size("quote", m.Quote, 1, maxTPM)
		f.size("signature", m.Signature, 1, maxTPM)
		f.size("pcr_values", m.PCRValues, 1, 3*24*64)
		f.bodies(m.Bodies)
	case *ekimport.Challenge:
		f.version(m.Version)
		f.id(m.ID)
		f.size("nonce", m.Nonce, nonceSize, nonceSize)
		f.size("public", m.Public, 1, maxTPM)
		f.size("duplicate", m.Duplicate, 1, maxTPM)
		f.size("seed", m.Seed, 1, maxTPM)
	case *ekimport.Response:
		f.version(m.Version)
		f.id(m.ID)
		f.size("ak_public", m.AKPublic, 1, maxTPM)
		f.size("ak_certify", m.AKCertify, 1, maxTPM)
		f.size("ak_signature", m.AKSignature, 1, maxTPM)
		f.size("key_public", m.KeyPublic, 1, maxTPM)
		f.size("certify", m.Certify, 1, maxTPM)
		f.size("signature", m.Signature, 1, maxTPM)
		f.size("csr", m.CSR, 1, maxCertificate)
	}
	if f.err != nil {
		return reason.Because(f.code, fmt.Errorf("%w: %T: %w", ErrMalformed, m, f.err))
	}
	return nil
}

type fields struct {
	err  error
	code reason.Code
}

func (f *fields) fail(code reason.Code, format string, args ...any) {
	if f.err == nil {
		f.err, f.code = fmt.Errorf(format, args...), code
	}
}

func (f *fields) version(v int) {
	if v != messageVersion {
		f.fail(reason.Version, "version %d, this program reads %d", v, messageVersion)
	}
}

func (f *fields) size(name string, b []byte, least, most int) {
	if len(b) < least || len(b) > most {
		code := reason.TooLarge
		if len(b) < least {
			code = reason.CutShort
		}
		f.fail(code, "%s has %d bytes, want %d to %d", name, len(b), least, most)
	}
}

func (f *fields) id(id string) {
	if len(id) == 0 || len(id) > maxID {
		f.fail(reason.Malformed, "challenge ID has %d characters, want 1 to %d", len(id), maxID)
	}
	for _, r := range id {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			f.fail(reason.Malformed, "challenge ID has characters other than a-z, 0-9 and -")
		}
	}
}

func (f *fields) purpose(p string) {
	if len(p) == 0 || len(p) > 32 {
		f.fail(reason.Malformed, "purpose has %d characters, want 1 to 32", len(p))
	}
	for _, r := range p {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			f.fail(reason.Malformed, "purpose has characters other than a-z, 0-9 and -")
		}
	}
}

func (f *fields) certificates(chain [][]byte) {
	if len(chain) == 0 || len(chain) > maxCertificates {
		f.fail(reason.Malformed, "%d certificates, want 1 to %d", len(chain), maxCertificates)
	}
	for _, c := range chain {
		f.size("certificate", c, 1, maxCertificate)
	}
}

func (f *fields) bodies(list []Body) {
	if len(list) > maxBodies {
		f.fail(reason.TooLarge, "%d bodies, limit %d", len(list), maxBodies)
		return
	}
	last, total := "", 0
	for _, b := range list {
		if len(b.MediaType) == 0 || len(b.MediaType) > maxMediaType {
			f.fail(reason.Malformed, "media type has %d characters, want 1 to %d", len(b.MediaType), maxMediaType)
		}
		if b.MediaType <= last {
			f.fail(reason.Malformed, "media type %q is twice there or out of order", b.MediaType)
		}
		last = b.MediaType
		total += len(b.Data)
	}
	if total > maxBodyBytes {
		f.fail(reason.TooLarge, "bodies of %d bytes together, limit %d", total, maxBodyBytes)
	}
}
