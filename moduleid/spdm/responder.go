package spdm

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"

	"github.com/trusttree/trusttree/moduleid"
)

// ResponderConfig describes a module's side.
type ResponderConfig struct {
	// Key signs, and Chain certifies it, leaf first and with the root last, in
	// slot 0. ECDSA keys on P-256, P-384 and P-521 and RSA keys of 3072 and
	// 4096 bits work.
	Key   crypto.Signer
	Chain []*x509.Certificate

	// Measurements are signed on request; Index is 1 to 254. A Kind that
	// DSP0274 does not know is sent as firmware.
	Measurements []moduleid.Measurement

	// Versions are those it speaks. Nil means 1.2 and 1.3.
	Versions []Version

	// MaxPortion is the largest portion of the certificate chain in bytes that
	// it sends at once. Zero means 1024.
	MaxPortion int
}

// Responder answers SPDM requests for one module, one after the other. It
// serves version, capabilities, algorithms, digests, certificates, challenge
// and signed measurements. Safe for concurrent use; there is one requester at
// a time, as the standard has it.
type Responder struct {
	cfg   ResponderConfig
	asym  uint32
	hash  uint32
	certs []byte // the certificates from root to leaf

	mu      sync.Mutex
	version Version
	stage   byte
	a, b, l []byte
}

// NewResponder checks the configuration and returns a responder.
func NewResponder(cfg ResponderConfig) (*Responder, error) {
	if cfg.Key == nil || len(cfg.Chain) == 0 {
		return nil, errors.New("spdm: a responder needs a key and its certificate chain")
	}
	pub, ok := cfg.Key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(cfg.Chain[0].PublicKey) {
		return nil, errors.New("spdm: the first certificate of the chain does not certify the responder's key")
	}
	r := &Responder{cfg: cfg, asym: algorithmOf(cfg.Key.Public()), hash: hashSHA256}
	if r.asym == 0 {
		return nil, fmt.Errorf("spdm: keys of type %T and this size are not supported", cfg.Key.Public())
	}
	switch r.asym {
	case asymP384, asymRSAPSS3072, asymRSAPSS4096:
		r.hash = hashSHA384
	case asymP521:
		r.hash = hashSHA512
	}
	if cfg.Versions == nil {
		r.cfg.Versions = []Version{Version12, Version13}
	}
	if cfg.MaxPortion <= 0 {
		r.cfg.MaxPortion = 1024
	}
	for i := range cfg.Chain {
		r.certs = append(r.certs, cfg.Chain[len(cfg.Chain)-1-i].Raw...)
	}
	if len(r.certs) > maxChain-4-64 {
		return nil, fmt.Errorf("spdm: the certificate chain has %d bytes; the limit is %d", len(r.certs), maxChain)
	}
	for _, m := range cfg.Measurements {
		if m.Index < 1 || m.Index > 254 || len(m.Value) > 1024 {
			return nil, fmt.Errorf("spdm: measurement %d of %d bytes; indices are 1 to 254, values at most 1024 bytes", m.Index, len(m.Value))
		}
	}
	return r, nil
}

// chain returns the certificate chain structure.
func (r *Responder) chain() []byte {
	h := hashOf(r.hash)
	root := r.cfg.Chain[len(r.cfg.Chain)-1]
	out := le.AppendUint32(nil, uint32(4+h.Size()+len(r.certs)))
	return append(append(out, sum(h, root.Raw)...), r.certs...)
}

func sum(h crypto.Hash, p []byte) []byte {
	w := h.New()
	w.Write(p)
	return w.Sum(nil)
}

// Respond answers one request.
func (r *Responder) Respond(req []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	refuse := func(code byte) []byte {
		v := r.version
		if v == 0 {
			v = Version10
		}
		return []byte{byte(v), rspError, code, 0}
	}
	if len(req) < 4 || len(req) > maxMessage {
		return refuse(errInvalidRequest)
	}
	if req[1] != reqMeasurements {
		r.l = nil
	}
	if req[1] == reqVersion {
		return r.versions(req)
	}
	if r.stage == 0 {
		return refuse(errUnexpected)
	}
	if req[1] != reqCapabilities && Version(req[0]) != r.version {
		return refuse(errVersion)
	}
	var rsp []byte
	switch req[1] {
	case reqCapabilities:
		rsp = r.capabilities(req)
	case reqAlgorithms:
		rsp = r.algorithms(req)
	case reqDigests:
		rsp = r.digests(req)
	case reqCertificate:
		rsp = r.certificate(req)
	case reqChallenge:
		rsp = r.challenge(req)
	case reqMeasurements:
		rsp = r.measure(req)
	default:
		return refuse(errUnsupported)
	}
	if rsp == nil {
		return refuse(errInvalidRequest)
	}
	return rsp
}

func (r *Responder) versions(req []byte) []byte {
	if len(req) != 4 || req[0] != byte(Version10) {
		return []byte{byte(Version10), rspError, errInvalidRequest, 0}
	}
	rsp := []byte{byte(Version10), rspVersion, 0, 0, 0, byte(len(r.cfg.Versions))}
	for _, v := range r.cfg.Versions {
		rsp = append(rsp, 0, byte(v))
	}
	r.a, r.b, r.l, r.version, r.stage = nil, nil, nil, 0, reqVersion
	pair(&r.a, req, rsp)
	return rsp
}

func (r *Responder) capabilities(req []byte) []byte {
	v, size := Version(req[0]), 20
	if v < Version12 {
		size = 12
	}
	if v == Version10 {
		size = 4
	}
	known := false
	for _, w := range r.cfg.Versions {
		known = known || w == v
	}
	if r.stage != reqVersion || !known || len(req) != size {
		return nil
	}
	rsp := []byte{byte(v), rspCapabilities, 0, 0, 0, requesterExp, 0, 0}
	flags := uint32(capCert | capChallenge)
	if len(r.cfg.Measurements) > 0 {
		flags |= capMeasSig
	}
	rsp = le.AppendUint32(rsp, flags)
	if v >= Version12 {
		rsp = le.AppendUint32(le.AppendUint32(rsp, maxMessage), maxMessage)
	}
	r.version, r.stage = v, reqCapabilities
	pair(&r.a, req, rsp)
	return rsp
}

func (r *Responder) algorithms(req []byte) []byte {
	if r.stage != reqCapabilities || len(req) < 32 || int(le.Uint16(req[4:])) != len(req) ||
		le.Uint32(req[8:])&r.asym == 0 || le.Uint32(req[12:])&r.hash == 0 {
		return nil
	}
	rsp := make([]byte, 36)
	copy(rsp, []byte{byte(r.version), rspAlgorithms, 0, 0, 36, 0, req[6] & 1, req[7] & 2})
	if len(r.cfg.Measurements) > 0 {
		le.PutUint32(rsp[8:], 1) // raw values
	}
	le.PutUint32(rsp[12:], r.asym)
	le.PutUint32(rsp[16:], r.hash)
	r.stage = reqAlgorithms
	pair(&r.a, req, rsp)
	return rsp
}

func (r *Responder) digests(req []byte) []byte {
	if r.stage == reqVersion || r.stage == reqCapabilities || len(req) != 4 {
		return nil
	}
	rsp := append([]byte{byte(r.version), rspDigests, 0, 1}, sum(hashOf(r.hash), r.chain())...)
	if r.version >= Version13 {
		rsp[2] = 1
	}
	r.stage = reqDigests
	pair(&r.b, req, rsp)
	return rsp
}

func (r *Responder) certificate(req []byte) []byte {
	if r.stage == reqVersion || r.stage == reqCapabilities || len(req) != 8 || req[2] != 0 {
		return nil
	}
	chain := r.chain()
	offset, length := int(le.Uint16(req[4:])), int(le.Uint16(req[6:]))
	if offset >= len(chain) || length == 0 {
		return nil
	}
	portion := min(length, r.cfg.MaxPortion, len(chain)-offset)
	rsp := []byte{byte(r.version), rspCertificate, 0, 0}
	rsp = le.AppendUint16(rsp, uint16(portion))
	rsp = le.AppendUint16(rsp, uint16(len(chain)-offset-portion))
	rsp = append(rsp, chain[offset:offset+portion]...)
	if len(r.b) > 2*maxChain {
		return nil
	}
	r.stage = reqCertificate
	pair(&r.b, req, rsp)
	return rsp
}

func (r *Responder) challenge(req []byte) []byte {
	size := 36
	if r.version >= Version13 {
		size = 44
	}
	if r.stage == reqVersion || r.stage == reqCapabilities || len(req) != size || req[2] != 0 || req[3] != 0 {
		return nil
	}
	h := hashOf(r.hash)
	rsp := append([]byte{byte(r.version), rspChallenge, 0, 1}, sum(h, r.chain())...)
	rsp = append(rsp, fresh()...)
	rsp = append(rsp, 0, 0)
	rsp = append(rsp, req[36:]...)
	m1 := append(append(append(append([]byte(nil), r.a...), r.b...), req...), rsp...)
	sig, err := makeSignature(r.asym, h, r.cfg.Key, signedDigest(r.version, contextChallenge, h, m1))
	if err != nil {
		return []byte{byte(r.version), rspError, 5, 0}
	}
	r.b, r.stage = nil, reqChallenge
	return append(rsp, sig...)
}

func fresh() []byte {
	p := make([]byte, 32)
	rand.Read(p)
	return p
}

func (r *Responder) measure(req []byte) []byte {
	size := 36
	if r.version >= Version11 {
		size++
	}
	if r.version >= Version13 {
		size += 8
	}
	// Only what a proof needs: all measurements, signed, by slot 0.
	if r.stage == reqVersion || r.stage == reqCapabilities || len(r.cfg.Measurements) == 0 || len(req) != size ||
		req[2]&1 == 0 || req[3] != 0xff || r.version >= Version11 && req[36] != 0 {
		return nil
	}
	var record []byte
	for _, m := range r.cfg.Measurements {
		record = append(record, byte(m.Index), 1)
		record = le.AppendUint16(record, uint16(3+len(m.Value)))
		record = append(record, kindOf(m.Kind)|0x80)
		record = le.AppendUint16(record, uint16(len(m.Value)))
		record = append(record, m.Value...)
	}
	rsp := []byte{byte(r.version), rspMeasurements, 0, 0, byte(len(r.cfg.Measurements)), byte(len(record)), byte(len(record) >> 8), byte(len(record) >> 16)}
	rsp = append(append(append(rsp, record...), fresh()...), 0, 0)
	if r.version >= Version13 {
		rsp = append(rsp, req[37:]...)
	}
	h := hashOf(r.hash)
	pair(&r.l, req, rsp)
	l1 := r.l
	if r.version >= Version12 {
		l1 = append(append([]byte(nil), r.a...), r.l...)
	}
	sig, err := makeSignature(r.asym, h, r.cfg.Key, signedDigest(r.version, contextMeasurements, h, l1))
	if err != nil {
		return []byte{byte(r.version), rspError, 5, 0}
	}
	r.l = nil
	return append(rsp, sig...)
}

// kindOf returns the number of a kind of measurement.
func kindOf(kind string) byte {
	for i, k := range kinds {
		if k == kind {
			return byte(i)
		}
	}
	return 1
}
