package spdm

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"math/bits"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/internal/keysize"
)

// transcript checks requests and responses in the order they were exchanged.
// The requester runs it while it talks, and a verifier over what was kept:
// what one accepts, the other does.
type transcript struct {
	a, b, l []byte // DSP0274's message transcripts A, B and L

	version Version
	flags   uint32 // the responder's capabilities
	chunks  bool   // both sides take messages in chunks
	most    int    // bytes that the responder takes in one transfer; 0: any
	multi   bool   // the slots have keys of their own, and DIGESTS says for what
	offered [2]uint32
	asym    uint32
	hash    crypto.Hash
	stage   byte   // code of the last request that was answered
	slot    byte   // of the certificate chain
	listed  []byte // the slot's digest in DIGESTS
	chain   []byte // certificate chain structure so far
	total   int    // its whole size, once known
	certs   []*x509.Certificate

	challenges   []challenge
	measurements []signedMeasurements
}

// challenge is one CHALLENGE whose signature holds.
type challenge struct {
	nonce   [32]byte
	context []byte // RequesterContext, since 1.3
}

// signedMeasurements is one GET_MEASUREMENTS whose signature holds.
type signedMeasurements struct {
	nonce   [32]byte
	context []byte
	blocks  []moduleid.Measurement
}

// add checks one request with its response.
func (t *transcript) add(req, rsp []byte) error {
	if len(req) < 4 || len(rsp) < 4 {
		return errors.New("spdm: a message is shorter than its header")
	}
	want := t.version
	if req[1] == reqVersion {
		want = Version10
	}
	if Version(req[0]) != want && req[1] != reqCapabilities || Version(rsp[0]) != Version(req[0]) {
		return fmt.Errorf("spdm: a message of version %s in an exchange of %s", Version(rsp[0]), want)
	}
	var err error
	switch {
	case req[1] == reqVersion && rsp[1] == rspVersion && t.stage == 0:
		err = t.versions(req, rsp)
	case req[1] == reqCapabilities && rsp[1] == rspCapabilities && t.stage == reqVersion:
		err = t.capabilities(req, rsp)
	case req[1] == reqAlgorithms && rsp[1] == rspAlgorithms && t.stage == reqCapabilities:
		err = t.algorithms(req, rsp)
	case req[1] == reqDigests && rsp[1] == rspDigests && t.stage == reqAlgorithms:
		err = t.digests(req, rsp)
	case req[1] == reqCertificate && rsp[1] == rspCertificate && (t.stage == reqDigests || t.stage == reqCertificate):
		err = t.certificate(req, rsp)
	case req[1] == reqChallenge && rsp[1] == rspChallenge && (t.stage == reqCertificate || t.stage == reqChallenge):
		err = t.challenge(req, rsp)
	case req[1] == reqMeasurements && rsp[1] == rspMeasurements && (t.stage == reqChallenge || t.stage == reqMeasurements):
		err = t.measured(req, rsp)
	default:
		err = fmt.Errorf("request %#02x with response %#02x is out of order", req[1], rsp[1])
	}
	if err != nil {
		return fmt.Errorf("spdm: %w", err)
	}
	t.stage = req[1]
	return nil
}

// pair appends both messages to a part of the transcript.
func pair(part *[]byte, req, rsp []byte) { *part = append(append(*part, req...), rsp...) }

func (t *transcript) versions(req, rsp []byte) error {
	if !bytes.Equal(req, []byte{byte(Version10), reqVersion, 0, 0}) {
		return errors.New("GET_VERSION is malformed")
	}
	r := reader{p: rsp[4:]}
	r.u8()
	best := Version(0)
	for range r.u8() {
		if v := Version(r.u16() >> 8); v >= Version10 && v <= Version14 {
			best = max(best, v)
		}
	}
	if err := r.end(); err != nil {
		return fmt.Errorf("VERSION: %w", err)
	}
	if best == 0 {
		return errors.New("the responder speaks no version from 1.0 to 1.4")
	}
	t.version = best // the highest common one; what was offered is signed later
	pair(&t.a, req, rsp)
	return nil
}

func (t *transcript) capabilities(req, rsp []byte) error {
	if Version(req[0]) != t.version {
		return fmt.Errorf("version %s was used although %s is the highest common one", Version(req[0]), t.version)
	}
	size := 20
	if t.version < Version12 {
		size = 12
	}
	if len(rsp) < size {
		return errors.New("CAPABILITIES is too short")
	}
	t.flags = le.Uint32(rsp[8:])
	if t.version >= Version12 {
		if t.most = int(min(le.Uint32(rsp[12:]), maxFrame)); t.most < minTransfer {
			return fmt.Errorf("the responder takes %d bytes at once; the least is %d", t.most, minTransfer)
		}
		t.chunks = t.flags&capChunk != 0 && len(req) >= 20 && le.Uint32(req[8:])&capChunk != 0
	}
	if t.flags&capCert == 0 || t.flags&capChallenge == 0 {
		return errors.New("the responder has no certificates or answers no challenge")
	}
	pair(&t.a, req, rsp)
	return nil
}

func (t *transcript) algorithms(req, rsp []byte) error {
	if len(req) < 32 || int(le.Uint16(req[4:])) != len(req) {
		return errors.New("NEGOTIATE_ALGORITHMS has the wrong length")
	}
	t.offered = [2]uint32{le.Uint32(req[8:]), le.Uint32(req[12:])}
	t.multi = t.version >= Version13 && t.flags&capMultiKey != 0 && req[7]&otherMultiKey != 0
	if len(rsp) < 36 || int(le.Uint16(rsp[4:])) != len(rsp) {
		return errors.New("ALGORITHMS has the wrong length")
	}
	asym, hash := le.Uint32(rsp[12:]), le.Uint32(rsp[16:])
	if bits.OnesCount32(asym) != 1 || bits.OnesCount32(hash) != 1 {
		return errors.New("the responder did not select exactly one signature and one hash algorithm")
	}
	if asym&t.offered[0] == 0 || hash&t.offered[1] == 0 {
		return errors.New("the responder selected an algorithm that was not offered")
	}
	t.asym, t.hash = asym, hashOf(hash)
	if t.hash == 0 || signatureSize(asym) == 0 {
		return errors.New("the selected algorithm is not supported")
	}
	pair(&t.a, req, rsp)
	return nil
}

func (t *transcript) digests(req, rsp []byte) error {
	if len(req) != 4 {
		return errors.New("GET_DIGESTS has the wrong length")
	}
	n, size := bits.OnesCount8(rsp[3]), t.hash.Size()
	if t.multi {
		size += multiKeySize
	}
	if len(rsp) < 4+n*size {
		return fmt.Errorf("DIGESTS has %d bytes; %d slots need %d", len(rsp), n, 4+n*size)
	}
	if len(rsp) > 4+n*size {
		return fmt.Errorf("DIGESTS: %w: %d", errLong, len(rsp)-4-n*size)
	}
	t.listed = rsp
	pair(&t.b, req, rsp)
	return nil
}

// slotDigest returns the digest of a slot in DIGESTS.
func (t *transcript) slotDigest(slot byte) ([]byte, error) {
	if slot > 7 || t.listed[3]&(1<<slot) == 0 {
		return nil, fmt.Errorf("the responder has no certificate in slot %d (its slots are the bits of %#02x)", slot, t.listed[3])
	}
	i, h := bits.OnesCount8(t.listed[3]&(1<<slot-1)), t.hash.Size()
	return t.listed[4+i*h : 4+(i+1)*h], nil
}

// usable reports what keeps the key of the slot from a use, which only
// multi-key connections say: after the digests come a key pair and a kind of
// certificate, a byte each, and two bytes of uses for each slot.
func (t *transcript) usable(use uint16, what string) error {
	if !t.multi {
		return nil
	}
	n, i := bits.OnesCount8(t.listed[3]), bits.OnesCount8(t.listed[3]&(1<<t.slot-1))
	if uses := le.Uint16(t.listed[4+n*(t.hash.Size()+2)+2*i:]); uses&use == 0 {
		return fmt.Errorf("the key of slot %d is not for %s (its uses are %#04x)", t.slot, what, uses)
	}
	return nil
}

// Multi-key connections, since 1.3.
const (
	otherMultiKey = 1 << 4 // in NEGOTIATE_ALGORITHMS: the slots may have keys of their own
	multiKeySize  = 4      // bytes that DIGESTS then says about each slot
	useChallenge  = 1 << 1
	useMeasure    = 1 << 2
)

func (t *transcript) certificate(req, rsp []byte) error {
	if len(req) != 8 || len(rsp) < 8 || req[2] > 7 {
		return errors.New("GET_CERTIFICATE or CERTIFICATE has the wrong length")
	}
	if t.stage == reqDigests {
		t.slot = req[2]
	}
	offset, portion, rest := int(le.Uint16(req[4:])), int(le.Uint16(rsp[4:])), int(le.Uint16(rsp[6:]))
	switch {
	case req[2] != t.slot || rsp[2]&15 != t.slot:
		return errors.New("certificates of another slot in between")
	case t.certs != nil || offset != len(t.chain):
		return errors.New("a portion of the certificate chain is out of order")
	case portion > 0 && len(rsp) > 8+portion:
		return fmt.Errorf("CERTIFICATE: %w: %d", errLong, len(rsp)-8-portion)
	case portion == 0 || len(rsp) != 8+portion:
		return fmt.Errorf("CERTIFICATE announces a portion of %d bytes and has %d", portion, len(rsp)-8)
	case portion > int(le.Uint16(req[6:])):
		return errors.New("CERTIFICATE has more than was asked for")
	case t.total != 0 && t.total != offset+portion+rest:
		return errors.New("the certificate chain changed its size")
	case offset+portion+rest > maxChain:
		return fmt.Errorf("the certificate chain is larger than %d bytes", maxChain)
	}
	t.total = offset + portion + rest
	t.chain = append(t.chain, rsp[8:]...)
	pair(&t.b, req, rsp)
	if rest == 0 {
		return t.parseChain()
	}
	return nil
}

// parseChain reads the certificate chain structure: length, root hash, and the
// certificates from the root, or its first issued one, to the leaf.
func (t *transcript) parseChain() error {
	h := t.hash.Size()
	if len(t.chain) < 4+h {
		return errors.New("the certificate chain is too short")
	}
	length := int(le.Uint16(t.chain))
	if t.version >= Version14 {
		length = int(le.Uint32(t.chain))
	}
	if length != len(t.chain) {
		return fmt.Errorf("the certificate chain says %d bytes and has %d", length, len(t.chain))
	}
	listed, err := t.slotDigest(t.slot)
	if err != nil {
		return err
	}
	if !bytes.Equal(listed, t.sum(t.chain)) {
		return errors.New("the certificate chain is not the one of DIGESTS")
	}
	certs, err := x509.ParseCertificates(t.chain[4+h:])
	if err != nil {
		return malformed(fmt.Errorf("certificate chain: %w", err))
	}
	if len(certs) == 0 || len(certs) > 10 {
		return fmt.Errorf("a chain of %d certificates; 1 to 10 are allowed", len(certs))
	}
	for i, c := range certs {
		if err := keysize.Check(c); err != nil {
			return malformed(fmt.Errorf("certificate %d of the chain: %w", i, err))
		}
	}
	root := certs[0]
	if bytes.Equal(root.RawIssuer, root.RawSubject) && !bytes.Equal(t.chain[4:4+h], t.sum(root.Raw)) {
		return errors.New("the chain's root hash is not that of its root certificate")
	}
	for i := range certs {
		t.certs = append(t.certs, certs[len(certs)-1-i])
	}
	return nil
}

func (t *transcript) sum(p []byte) []byte {
	w := t.hash.New()
	w.Write(p)
	return w.Sum(nil)
}

// requesterContext returns the 8 bytes that messages carry since 1.3.
func (t *transcript) requesterContext(r *reader) []byte {
	if t.version < Version13 {
		return nil
	}
	return r.bytes(8)
}

func (t *transcript) challenge(req, rsp []byte) error {
	if t.certs == nil {
		return errors.New("CHALLENGE before the whole certificate chain")
	}
	q := reader{p: req[4:]}
	nonce, context := q.bytes(32), t.requesterContext(&q)
	if err := q.end(); err != nil {
		return fmt.Errorf("CHALLENGE: %w", err)
	}
	r := reader{p: rsp[4:]}
	chainHash := r.bytes(t.hash.Size())
	r.bytes(32)
	if req[3] != 0 && t.flags&capMeas != 0 {
		r.bytes(t.hash.Size()) // measurement summary
	}
	if n := r.u16(); n <= maxOpaque {
		r.bytes(n)
	} else {
		r.bad = true
	}
	echoed := t.requesterContext(&r)
	signed := len(rsp) - len(r.p)
	sig := r.bytes(signatureSize(t.asym))
	if err := r.end(); err != nil {
		return fmt.Errorf("CHALLENGE_AUTH: %w", err)
	}
	switch {
	case req[2] != t.slot || rsp[2]&15 != t.slot || rsp[3]&(1<<t.slot) == 0:
		return errors.New("CHALLENGE_AUTH is about another slot")
	case !bytes.Equal(chainHash, t.sum(t.chain)):
		return errors.New("CHALLENGE_AUTH is about another certificate chain")
	case !bytes.Equal(echoed, context):
		return errors.New("CHALLENGE_AUTH is about another requester's context")
	}
	if err := t.usable(useChallenge, "challenges"); err != nil {
		return err
	}
	m1 := append(append(append(bytes.Clone(t.a), t.b...), req...), rsp[:signed]...)
	digest := signedDigest(t.version, contextChallenge, t.hash, m1)
	if err := verifySignature(t.asym, t.hash, t.certs[0].PublicKey, digest, sig); err != nil {
		return fmt.Errorf("CHALLENGE_AUTH: %w", err)
	}
	t.b, t.l = nil, nil
	t.challenges = append(t.challenges, challenge{[32]byte(nonce), context})
	return nil
}

func (t *transcript) measured(req, rsp []byte) error {
	if req[2]&1 == 0 {
		return errors.New("GET_MEASUREMENTS without a signature proves nothing")
	}
	q := reader{p: req[4:]}
	nonce := q.bytes(32)
	slot := byte(0)
	if t.version >= Version11 {
		slot = q.u8()
	}
	context := t.requesterContext(&q)
	if err := q.end(); err != nil {
		return fmt.Errorf("GET_MEASUREMENTS: %w", err)
	}
	r := reader{p: rsp[4:]}
	count := int(r.u8())
	record := r.bytes(r.u24())
	r.bytes(32)
	if n := r.u16(); n <= maxOpaque {
		r.bytes(n)
	} else {
		r.bad = true
	}
	echoed := t.requesterContext(&r)
	signed := len(rsp) - len(r.p)
	sig := r.bytes(signatureSize(t.asym))
	if err := r.end(); err != nil {
		return fmt.Errorf("MEASUREMENTS: %w", err)
	}
	switch {
	case slot != t.slot || t.version >= Version11 && rsp[3]&15 != t.slot:
		return errors.New("MEASUREMENTS is signed for another slot")
	case !bytes.Equal(echoed, context):
		return errors.New("MEASUREMENTS is about another requester's context")
	case t.version >= Version12 && rsp[3]>>4&3 == 1:
		return errors.New("the responder says that its measurements changed while they were read")
	}
	if err := t.usable(useMeasure, "measurements"); err != nil {
		return err
	}
	pair(&t.l, req, rsp[:signed])
	l1 := t.l
	if t.version >= Version12 {
		l1 = append(bytes.Clone(t.a), t.l...)
	}
	digest := signedDigest(t.version, contextMeasurements, t.hash, l1)
	if err := verifySignature(t.asym, t.hash, t.certs[0].PublicKey, digest, sig); err != nil {
		return fmt.Errorf("MEASUREMENTS: %w", err)
	}
	blocks, err := parseBlocks(count, record)
	if err != nil {
		return err
	}
	t.l = nil
	t.measurements = append(t.measurements, signedMeasurements{[32]byte(nonce), context, blocks})
	return nil
}
