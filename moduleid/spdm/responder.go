package spdm

import (
	"crypto"
	"crypto/rand"
	"fmt"
	"sync"
)

// Responder answers SPDM requests for one module, one after the other. It
// serves version, capabilities, algorithms, digests, certificates, challenge,
// signed measurements, and chunks. Safe for concurrent use; there is one
// requester at a time, as the standard has it.
type Responder struct {
	cfg   ResponderConfig
	slots map[int]Slot
	mask  byte // of the slots
	asym  uint32
	hash  uint32

	mu      sync.Mutex
	version Version
	stage   byte
	multi   bool
	a, b, l []byte
	chunks  chunks
}

// NewResponder checks the configuration and returns a responder.
func NewResponder(cfg ResponderConfig) (*Responder, error) {
	r := &Responder{cfg: cfg, slots: map[int]Slot{0: {cfg.Key, cfg.Chain}}}
	for n, s := range cfg.Slots {
		if n < 1 || n > 7 {
			return nil, fmt.Errorf("spdm: slot %d is none of 1 to 7", n)
		}
		r.slots[n] = s
	}
	for n, s := range r.slots {
		if s.Key == nil || len(s.Chain) == 0 {
			return nil, fmt.Errorf("spdm: slot %d of a responder needs a key and its certificate chain", n)
		}
		pub, ok := s.Key.Public().(interface{ Equal(crypto.PublicKey) bool })
		if !ok || !pub.Equal(s.Chain[0].PublicKey) {
			return nil, fmt.Errorf("spdm: the first certificate of slot %d does not certify the responder's key", n)
		}
		size := 0
		for _, c := range s.Chain {
			size += len(c.Raw)
		}
		if size > maxChain-4-64 {
			return nil, fmt.Errorf("spdm: the certificate chain of slot %d has %d bytes; the limit is %d", n, size, maxChain)
		}
		r.mask |= 1 << n
	}
	if err := r.algorithm(); err != nil {
		return nil, err
	}
	if cfg.Versions == nil {
		r.cfg.Versions = []Version{Version12, Version13}
	}
	if cfg.MaxPortion <= 0 {
		r.cfg.MaxPortion = 1024
	}
	if cfg.TransferSize == 0 {
		r.cfg.TransferSize = maxMessage
	}
	if r.cfg.TransferSize < minTransfer || r.cfg.TransferSize > maxFrame {
		return nil, fmt.Errorf("spdm: a transfer has %d to %d bytes, not %d", minTransfer, maxFrame, cfg.TransferSize)
	}
	if len(cfg.Opaque) > maxOpaque {
		return nil, fmt.Errorf("spdm: opaque data of %d bytes; the limit is %d", len(cfg.Opaque), maxOpaque)
	}
	for _, m := range cfg.Measurements {
		if m.Index < 1 || m.Index > 254 || len(m.Value) > 1024 {
			return nil, fmt.Errorf("spdm: measurement %d of %d bytes; indices are 1 to 254, values at most 1024 bytes", m.Index, len(m.Value))
		}
	}
	return r, nil
}

// chain returns the certificate chain structure of a slot.
func (r *Responder) chain(slot int) []byte {
	h, certs := hashOf(r.hash), r.slots[slot].Chain
	root := certs[len(certs)-1]
	out := append([]byte{0, 0, 0, 0}, sum(h, root.Raw)...)
	for i := range certs {
		out = append(out, certs[len(certs)-1-i].Raw...)
	}
	le.PutUint32(out, uint32(len(out)))
	return out
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
	if len(req) < 4 || len(req) > maxMessage {
		return r.refuse(errInvalidRequest)
	}
	if req[1] == reqChunkSend || req[1] == reqChunkGet {
		return r.chunk(req)
	}
	if len(req) > r.cfg.TransferSize {
		return r.refuse(errInvalidRequest)
	}
	r.chunks.joiner, r.chunks.large = joiner{}, nil
	return r.fit(r.answer(req), 0)
}

func (r *Responder) refuse(code byte) []byte {
	v := r.version
	if v == 0 {
		v = Version10
	}
	return []byte{byte(v), rspError, code, 0}
}

// answer answers a whole request.
func (r *Responder) answer(req []byte) []byte {
	if req[1] != reqMeasurements {
		r.l = nil
	}
	if req[1] == reqVersion {
		return r.versions(req)
	}
	if r.stage == 0 {
		return r.refuse(errUnexpected)
	}
	if req[1] != reqCapabilities && Version(req[0]) != r.version {
		return r.refuse(errVersion)
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
		return r.refuse(errUnsupported)
	}
	if rsp == nil {
		return r.refuse(errInvalidRequest)
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
	r.a, r.b, r.l, r.version, r.stage, r.multi, r.chunks = nil, nil, nil, 0, reqVersion, false, chunks{}
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
	if v >= Version12 {
		if r.chunks.peer = int(min(le.Uint32(req[12:]), maxFrame)); r.chunks.peer < minTransfer {
			return nil
		}
		r.chunks.on = le.Uint32(req[8:])&capChunk != 0
	}
	rsp := []byte{byte(v), rspCapabilities, 0, 0, 0, requesterExp, 0, 0}
	flags := uint32(capCert | capChallenge)
	switch {
	case r.cfg.UnsignedMeasurements:
		flags |= capMeasNoSig
	case len(r.cfg.Measurements) > 0:
		flags |= capMeasSig
	}
	if v >= Version12 {
		flags |= capChunk
		if r.cfg.AliasCertificates {
			flags |= capAlias
		}
	}
	if v >= Version13 && r.cfg.MultiKey {
		flags |= capMultiOnly
	}
	rsp = le.AppendUint32(rsp, flags)
	if v >= Version12 {
		rsp = le.AppendUint32(le.AppendUint32(rsp, uint32(r.cfg.TransferSize)), maxLarge)
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
	other := byte(0)
	if r.version >= Version12 {
		other = req[7] & 2 // opaque data format 1, or none
	}
	if r.multi = r.version >= Version13 && r.cfg.MultiKey; r.multi && req[7]&otherMultiKey == 0 {
		return nil
	}
	rsp := make([]byte, 36)
	copy(rsp, []byte{byte(r.version), rspAlgorithms, 0, 0, 36, 0, req[6] & 1, other})
	if len(r.cfg.Measurements) > 0 || r.cfg.UnsignedMeasurements {
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
	rsp := []byte{byte(r.version), rspDigests, 0, r.mask}
	if r.version >= Version13 {
		rsp[2] = r.mask
	}
	var pairs, infos, uses []byte
	for n := range 8 {
		if r.mask&(1<<n) == 0 {
			continue
		}
		rsp = append(rsp, sum(hashOf(r.hash), r.chain(n))...)
		info := byte(1) // device certificate
		if r.cfg.AliasCertificates {
			info = 2
		}
		pairs, infos = append(pairs, byte(n+1)), append(infos, info)
		uses = le.AppendUint16(uses, useChallenge|useMeasure)
	}
	if r.multi {
		rsp = append(append(append(rsp, pairs...), infos...), uses...)
	}
	r.stage = reqDigests
	pair(&r.b, req, rsp)
	return rsp
}

func (r *Responder) certificate(req []byte) []byte {
	if r.stage == reqVersion || r.stage == reqCapabilities || len(req) != 8 || !r.has(req[2]) {
		return nil
	}
	chain := r.chain(int(req[2]))
	offset, length := int(le.Uint16(req[4:])), int(le.Uint16(req[6:]))
	if offset >= len(chain) || length == 0 {
		return nil
	}
	portion := min(length, r.cfg.MaxPortion, len(chain)-offset)
	rsp := []byte{byte(r.version), rspCertificate, req[2], 0}
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
	if r.stage == reqVersion || r.stage == reqCapabilities || len(req) != size || !r.has(req[2]) || req[3] != 0 {
		return nil
	}
	h, slot := hashOf(r.hash), int(req[2])
	rsp := append([]byte{byte(r.version), rspChallenge, req[2], r.mask}, sum(h, r.chain(slot))...)
	rsp = append(rsp, fresh()...)
	rsp = append(le.AppendUint16(rsp, uint16(len(r.cfg.Opaque))), r.cfg.Opaque...)
	rsp = append(rsp, req[36:]...)
	m1 := append(append(append(append([]byte(nil), r.a...), r.b...), req...), rsp...)
	sig, err := makeSignature(r.asym, h, r.slots[slot].Key, signedDigest(r.version, contextChallenge, h, m1))
	if err != nil {
		return []byte{byte(r.version), rspError, 5, 0}
	}
	r.b, r.stage = nil, reqChallenge
	return append(rsp, sig...)
}

// has reports whether there is a certificate in a slot.
func (r *Responder) has(slot byte) bool { return slot < 8 && r.mask&(1<<slot) != 0 }

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
	// Only what a proof needs: all measurements, signed.
	if r.stage == reqVersion || r.stage == reqCapabilities || len(r.cfg.Measurements) == 0 || r.cfg.UnsignedMeasurements || len(req) != size ||
		req[2]&1 == 0 || req[3] != 0xff || r.version >= Version11 && !r.has(req[36]) {
		return nil
	}
	slot := byte(0)
	if r.version >= Version11 {
		slot = req[36]
	}
	var record []byte
	for _, m := range r.cfg.Measurements {
		record = append(record, byte(m.Index), 1)
		record = le.AppendUint16(record, uint16(3+len(m.Value)))
		record = append(record, kindOf(m.Kind)|0x80)
		record = le.AppendUint16(record, uint16(len(m.Value)))
		record = append(record, m.Value...)
	}
	rsp := []byte{byte(r.version), rspMeasurements, 0, slot, byte(len(r.cfg.Measurements)), byte(len(record)), byte(len(record) >> 8), byte(len(record) >> 16)}
	rsp = append(append(rsp, record...), fresh()...)
	rsp = append(le.AppendUint16(rsp, uint16(len(r.cfg.Opaque))), r.cfg.Opaque...)
	if r.version >= Version13 {
		rsp = append(rsp, req[37:]...)
	}
	h := hashOf(r.hash)
	pair(&r.l, req, rsp)
	l1 := r.l
	if r.version >= Version12 {
		l1 = append(append([]byte(nil), r.a...), r.l...)
	}
	sig, err := makeSignature(r.asym, h, r.slots[int(slot)].Key, signedDigest(r.version, contextMeasurements, h, l1))
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
