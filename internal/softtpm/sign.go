package softtpm

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
)

// signature is a TPMT_SIGNATURE.
type signature struct {
	alg, hash uint16
	a, b      []byte // RSA signature or HMAC; r and s of ECDSA
}

func (r *reader) signature() (s signature) {
	switch s.alg = r.u16(); s.alg {
	case algRSASSA, algRSAPSS:
		s.hash = r.hash(false)
		s.a = r.b2(maxRSABytes)
	case algECDSA:
		s.hash = r.hash(false)
		s.a, s.b = r.b2(maxECCBytes), r.b2(maxECCBytes)
	case algHMAC:
		s.hash = r.hash(false)
		s.a = r.bytes(hashSize(s.hash))
	default:
		r.fail(rcScheme)
	}
	return s
}

func (w *writer) signature(s signature) {
	w.u16(s.alg)
	if s.alg == algNull {
		return
	}
	w.u16(s.hash)
	switch s.alg {
	case algECDSA:
		w.b2(s.a)
		w.b2(s.b)
	case algHMAC:
		w.raw(s.a)
	default:
		w.b2(s.a)
	}
}

// canSign says whether o is a signing key.
func (o *object) canSign() bool {
	return o.seq == nil && o.pub.is(attrSign) && o.pub.typ != algSymCipher
}

// signScheme chooses between the key's scheme and the one asked for.
func (o *object) signScheme(want scheme) (scheme, bool) {
	own := o.pub.scheme
	if o.pub.typ == algSymCipher {
		return want, false
	}
	switch {
	case own.alg == algNull:
		return want, want.alg != algNull && o.pub.signsWith(want.alg)
	case want.alg == algNull:
		return own, true
	}
	return want, own.alg == want.alg && own.hash == want.hash
}

// signsWith says whether keys of a type sign with a scheme.
func (p *public) signsWith(alg uint16) bool {
	switch p.typ {
	case algECC:
		return alg == algECDSA
	case algRSA:
		return alg == algRSASSA || alg == algRSAPSS
	case algKeyedHash:
		return alg == algHMAC
	}
	return false
}

// sign signs a digest.
func (o *object) sign(s scheme, sum []byte) (signature, rc) {
	sig := signature{alg: s.alg, hash: s.hash}
	if o.sens == nil {
		return sig, rcKey
	}
	switch o.pub.typ {
	case algECC:
		if s.alg != algECDSA {
			return sig, rcScheme
		}
		k := o.ecKey()
		if k == nil {
			return sig, rcKey
		}
		var ok bool
		if sig.a, sig.b, ok = curveOf(o.pub.curve).sign(k, sum); !ok {
			return sig, rcNoResult
		}
		return sig, 0
	case algRSA:
		k := o.rsaKey()
		if k == nil {
			return sig, rcKey
		}
		var err error
		switch s.alg {
		case algRSASSA:
			sig.a, err = rsa.SignPKCS1v15(rand.Reader, k, hashOf(s.hash), sum)
		case algRSAPSS:
			sig.a, err = rsa.SignPSS(rand.Reader, k, hashOf(s.hash), sum, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		default:
			return sig, rcScheme
		}
		if err != nil {
			return sig, rcSize
		}
		return sig, 0
	case algKeyedHash:
		if s.alg != algHMAC {
			return sig, rcScheme
		}
		sig.a = mac(s.hash, o.sens.bits, sum)
		return sig, 0
	}
	return sig, rcScheme
}

// verify checks a signature over a digest.
func (o *object) verify(s signature, sum []byte) rc {
	switch {
	case o.seq != nil:
		return rcScheme
	case o.pub.typ == algECC && s.alg == algECDSA:
		pub, err := curveOf(o.pub.curve).public(o.pub.x, o.pub.y)
		if err != nil || !verifyECDSA(pub, sum, s.a, s.b) {
			return rcSignature
		}
		return 0
	case o.pub.typ == algRSA && (s.alg == algRSASSA || s.alg == algRSAPSS):
		pub, ok := o.pub.rsaPublic()
		if !ok || len(s.a) != pub.Size() || len(sum) != hashSize(s.hash) {
			return rcSignature
		}
		var err error
		if h := hashOf(s.hash); s.alg == algRSASSA {
			err = rsa.VerifyPKCS1v15(pub, h, sum, s.a)
		} else {
			err = rsa.VerifyPSS(pub, h, sum, s.a, nil)
		}
		if err != nil {
			return rcSignature
		}
		return 0
	case o.pub.typ == algKeyedHash && s.alg == algHMAC:
		if o.sens == nil {
			return rcHandle
		}
		if !hmac.Equal(mac(s.hash, o.sens.bits, sum), s.a) {
			return rcSignature
		}
		return 0
	}
	return rcScheme
}

func sign(t *TPM, c *call) rc {
	sum := c.p.next().b2(maxDigest)
	s := c.p.next().sigScheme()
	tk := c.p.next().ticket(stHashCheck)
	if e := c.end(); e != 0 {
		return e
	}
	o := t.object(c.h[0])
	if !o.canSign() {
		return rcKey.handle(1)
	}
	if o.pub.is(attrX509Sign) {
		return rcAttributes.handle(1)
	}
	s, ok := o.signScheme(s)
	if !ok {
		return rcScheme.param(2)
	}
	if o.pub.is(attrRestricted) || len(tk.digest) > 0 {
		if !hmac.Equal(tk.digest, t.hashTicket(tk.hier, s.hash, sum).digest) || len(tk.digest) == 0 {
			return rcTicket.param(3)
		}
	} else if len(sum) != hashSize(s.hash) {
		return rcSize.param(1)
	}
	sig, e := o.sign(s, sum)
	if e != 0 {
		return e.param(2)
	}
	c.out.signature(sig)
	return 0
}

// hashTicket says that the TPM computed a digest itself, from data that does
// not look like an attestation.
func (t *TPM) hashTicket(hier uint32, alg uint16, sum []byte) ticket {
	return ticket{stHashCheck, hier, mac(algSHA512, t.proof(hier), be16(stHashCheck), be16(alg), sum)}
}

// verifiedTicket says that the TPM verified a signature of a key.
func (t *TPM) verifiedTicket(hier uint32, sum, keyName []byte) ticket {
	return ticket{stVerified, hier, mac(algSHA512, t.proof(hier), be16(stVerified), sum, keyName)}
}

func verifySignature(t *TPM, c *call) rc {
	sum := c.p.next().b2(maxDigest)
	sig := c.p.next().signature()
	if e := c.end(); e != 0 {
		return e
	}
	o := t.object(c.h[0])
	if !o.canSign() {
		return rcAttributes.handle(1)
	}
	if e := o.verify(sig, sum); e != 0 {
		return e.param(2)
	}
	if o.hier == rhNull || o.name == nil {
		c.out.ticket(ticket{stVerified, rhNull, nil})
	} else {
		c.out.ticket(t.verifiedTicket(o.hier, sum, o.name))
	}
	return 0
}

// rsaScheme reads a TPMT_RSA_DECRYPT+.
func (r *reader) rsaScheme() (s scheme) {
	switch s.alg = r.u16(); s.alg {
	case algNull, algRSAES:
	case algOAEP:
		s.hash = r.hash(false)
	default:
		r.fail(rcValue)
	}
	return s
}

// rsaPadding chooses between the key's padding and the one asked for.
func (o *object) rsaPadding(want scheme) (scheme, bool) {
	own := o.pub.scheme
	if signs(own.alg) || own.alg == algNull {
		return want, own.alg == algNull
	}
	return own, want.alg == algNull || want == own
}

func rsaDecrypt(t *TPM, c *call) rc {
	cipher := c.p.next().b2(maxRSABytes)
	s := c.p.next().rsaScheme()
	label := c.p.next().b2(maxDigest)
	if e := c.end(); e != 0 {
		return e
	}
	o := t.object(c.h[0])
	if o.seq != nil || o.pub.typ != algRSA {
		return rcKey.handle(1)
	}
	if o.pub.is(attrRestricted) || !o.pub.is(attrDecrypt) {
		return rcAttributes.handle(1)
	}
	if len(label) > 0 && label[len(label)-1] != 0 {
		return rcValue.param(3)
	}
	s, ok := o.rsaPadding(s)
	if !ok {
		return rcScheme.param(2)
	}
	k := o.rsaKey()
	if k == nil {
		return rcKey.handle(1)
	}
	if len(cipher) != k.Size() {
		return rcSize
	}
	var plain []byte
	switch s.alg {
	case algOAEP:
		m, err := rsa.DecryptOAEP(newHash(s.hash), nil, k, cipher, label)
		plain, ok = m, err == nil
	case algRSAES:
		if plain, ok = rawRSA(k, cipher); ok {
			plain, ok = unpadPKCS1(plain)
		}
	default:
		plain, ok = rawRSA(k, cipher)
	}
	if !ok {
		return rcValue.param(1)
	}
	c.out.b2(plain)
	return 0
}

// unpadPKCS1 removes the encryption padding of PKCS #1 v1.5.
func unpadPKCS1(m []byte) ([]byte, bool) {
	if len(m) < 11 || m[0] != 0 || m[1] != 2 {
		return nil, false
	}
	for i, b := range m[2:] {
		if b == 0 {
			return m[2+i+1:], i >= 8
		}
	}
	return nil, false
}

func rsaEncrypt(t *TPM, c *call) rc {
	message := c.p.next().b2(maxRSABytes)
	s := c.p.next().rsaScheme()
	label := c.p.next().b2(maxDigest)
	if e := c.end(); e != 0 {
		return e
	}
	o := t.object(c.h[0])
	if o.seq != nil || o.pub.typ != algRSA {
		return rcKey.handle(1)
	}
	if !o.pub.is(attrDecrypt) {
		return rcAttributes.handle(1)
	}
	if len(label) > 0 && label[len(label)-1] != 0 {
		return rcValue.param(3)
	}
	s, ok := o.rsaPadding(s)
	if !ok {
		return rcScheme.param(2)
	}
	pub, ok := o.pub.rsaPublic()
	if !ok {
		return rcKey.handle(1)
	}
	var out []byte
	switch s.alg {
	case algOAEP:
		out, ok = encryptOAEP(pub, s.hash, label, message)
	case algRSAES:
		if pad := pub.Size() - 3 - len(message); pad < 8 {
			ok = false
		} else {
			m := append([]byte{0, 2}, nonZero(pad)...)
			out, ok = rawRSAPublic(pub, append(append(m, 0), message...))
		}
	default:
		if len(message) > pub.Size() {
			return rcValue.param(1)
		}
		out, ok = rawRSAPublic(pub, message)
	}
	if !ok {
		return rcValue.param(1)
	}
	c.out.b2(out)
	return 0
}

func nonZero(n int) []byte {
	out := make([]byte, 0, n)
	for len(out) < n {
		var b [32]byte
		_, _ = rand.Read(b[:]) // never fails
		for _, v := range b {
			if v != 0 && len(out) < n {
				out = append(out, v)
			}
		}
	}
	return out
}
