package spdm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// Contexts of signatures since version 1.2.
const (
	contextChallenge    = "responder-challenge_auth signing"
	contextMeasurements = "responder-measurements signing"
)

// signedDigest returns what is signed for a transcript (DSP0274, 15): its
// hash, and since version 1.2 the hash of a prefix of 100 bytes with that.
func signedDigest(v Version, context string, h crypto.Hash, transcript []byte) []byte {
	w := h.New()
	w.Write(transcript)
	sum := w.Sum(nil)
	if v < Version12 {
		return sum
	}
	prefix := strings.Repeat(fmt.Sprintf("dmtf-spdm-v%s.*", v), 4)
	prefix += strings.Repeat("\x00", 36-len(context)) + context
	w.Reset()
	w.Write([]byte(prefix))
	w.Write(sum)
	return w.Sum(nil)
}

// verifySignature checks a signature in SPDM's encoding: r‖s big-endian, or an
// RSA signature.
func verifySignature(asym uint32, h crypto.Hash, key crypto.PublicKey, digest, sig []byte) error {
	bad := errors.New("the signature does not match the transcript")
	if len(sig) != signatureSize(asym) || len(sig) == 0 {
		return errors.New("the signature has the wrong size")
	}
	switch asym {
	case asymP256, asymP384, asymP521:
		k, ok := key.(*ecdsa.PublicKey)
		if !ok || map[uint32]int{asymP256: 256, asymP384: 384, asymP521: 521}[asym] != k.Curve.Params().BitSize {
			return errors.New("the certificate's key is not of the negotiated algorithm")
		}
		n := len(sig) / 2
		if !ecdsa.Verify(k, digest, new(big.Int).SetBytes(sig[:n]), new(big.Int).SetBytes(sig[n:])) {
			return bad
		}
		return nil
	}
	k, ok := key.(*rsa.PublicKey)
	if !ok || k.Size() != len(sig) {
		return errors.New("the certificate's key is not of the negotiated algorithm")
	}
	var err error
	if asym&asymPSS != 0 {
		err = rsa.VerifyPSS(k, h, digest, sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	} else {
		err = rsa.VerifyPKCS1v15(k, h, digest, sig)
	}
	if err != nil {
		return bad
	}
	return nil
}

// makeSignature signs a digest in SPDM's encoding.
func makeSignature(asym uint32, h crypto.Hash, key crypto.Signer, digest []byte) ([]byte, error) {
	var opts crypto.SignerOpts = h
	if asym&asymPSS != 0 {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
	}
	sig, err := key.Sign(rand.Reader, digest, opts)
	if err != nil {
		return nil, err
	}
	if _, ok := key.Public().(*ecdsa.PublicKey); !ok {
		return sig, nil
	}
	var rs struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(sig, &rs); err != nil || len(rest) > 0 {
		return nil, errors.New("spdm: the signer's ECDSA signature is not ASN.1 DER")
	}
	out := make([]byte, signatureSize(asym))
	rs.R.FillBytes(out[:len(out)/2])
	rs.S.FillBytes(out[len(out)/2:])
	return out, nil
}

// algorithmOf returns the asymmetric algorithm that a key signs with; RSA keys
// sign PSS.
func algorithmOf(key crypto.PublicKey) uint32 {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		return map[int]uint32{256: asymP256, 384: asymP384, 521: asymP521}[k.Curve.Params().BitSize]
	case *rsa.PublicKey:
		return map[int]uint32{256: asymRSAPSS2048, 384: asymRSAPSS3072, 512: asymRSAPSS4096}[k.Size()]
	}
	return 0
}
