package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/subtle"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/secureboot/eventlog"
)

type quoteState string

const (
	quoteVerified quoteState = "verified"
	quoteAbsent   quoteState = "absent"
	quoteBroken   quoteState = "broken"
)

type quoteResult struct {
	state quoteState
	err   error // why it is broken
}

// verifyQuote verifies a recorded quote of one bank and returns the values that
// it covers. A live verifier uses attest, which also demands the selection and
// binds the nonce to the channel; recordings were quoted over whatever their
// maker chose, PCR 16 and 23 included.
func verifyQuote(ak, quoted, sig, nonce []byte, bank crypto.Hash, pcrs map[int][]byte) (map[int][]byte, error) {
	if len(ak) < 2 || int(binary.BigEndian.Uint16(ak)) != len(ak)-2 {
		return nil, errors.New("attestation key is no TPM2B_PUBLIC")
	}
	key, err := quote.ParseKey(ak[2:])
	if err != nil {
		return nil, fmt.Errorf("attestation key: %w", err)
	}
	if err := verifySignature(key.Public(), quoted, sig); err != nil {
		return nil, err
	}
	att, err := tpm2.Unmarshal[tpm2.TPMSAttest](quoted)
	if err != nil {
		return nil, fmt.Errorf("quote: %w", err)
	}
	if att.Magic != tpm2.TPMGeneratedValue || att.Type != tpm2.TPMSTAttestQuote || !bytes.Equal(tpm2.Marshal(att), quoted) {
		return nil, errors.New("signed structure is no quote")
	}
	if len(nonce) == 0 || subtle.ConstantTimeCompare(att.ExtraData.Buffer, nonce) != 1 {
		return nil, errors.New("quote is of another nonce: it is old, or another verifier's")
	}
	info, err := att.Attested.Quote()
	if err != nil {
		return nil, fmt.Errorf("quote: %w", err)
	}
	return quotedValues(info, signatureHash(sig), bank, pcrs)
}

// quotedValues are the values that the quote's digest confirms.
func quotedValues(info *tpm2.TPMSQuoteInfo, hash, bank crypto.Hash, pcrs map[int][]byte) (map[int][]byte, error) {
	sels := info.PCRSelect.PCRSelections
	if len(sels) != 1 {
		return nil, fmt.Errorf("quote covers %d banks, want one", len(sels))
	}
	if h, err := sels[0].Hash.Hash(); err != nil || h != bank {
		return nil, fmt.Errorf("quote is not of bank %s", eventlog.HashName(bank))
	}
	h := hash.New()
	values := make(map[int][]byte)
	for i := range 8 * len(sels[0].PCRSelect) {
		if sels[0].PCRSelect[i/8]&(1<<(i%8)) == 0 {
			continue
		}
		v, ok := pcrs[i]
		if !ok {
			return nil, fmt.Errorf("quote covers PCR %d, whose value was not given", i)
		}
		h.Write(v)
		values[i] = v
	}
	if len(values) == 0 || !bytes.Equal(h.Sum(nil), info.PCRDigest.Buffer) {
		return nil, errors.New("PCR values are not those that were quoted")
	}
	return values, nil
}

// signatureHash returns the hash of a TPMT_SIGNATURE, or 0 for one that is too
// weak or not known.
func signatureHash(sig []byte) crypto.Hash {
	if len(sig) < 4 {
		return 0
	}
	switch tpm2.TPMAlgID(binary.BigEndian.Uint16(sig[2:])) {
	case tpm2.TPMAlgSHA256:
		return crypto.SHA256
	case tpm2.TPMAlgSHA384:
		return crypto.SHA384
	case tpm2.TPMAlgSHA512:
		return crypto.SHA512
	}
	return 0
}

func verifySignature(key crypto.PublicKey, signed, sig []byte) error {
	hash := signatureHash(sig)
	if hash == 0 {
		return errors.New("signature is of an unknown hash, or too weak")
	}
	s, err := tpm2.Unmarshal[tpm2.TPMTSignature](sig)
	if err != nil {
		return fmt.Errorf("signature: %w", err)
	}
	if !bytes.Equal(tpm2.Marshal(s), sig) {
		return errors.New("signature is followed by other bytes")
	}
	h := hash.New()
	h.Write(signed)
	digest := h.Sum(nil)
	bad := errors.New("signature of the quote does not verify")
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		ec, err := s.Signature.ECDSA()
		if err != nil {
			return bad
		}
		der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(ec.SignatureR.Buffer), new(big.Int).SetBytes(ec.SignatureS.Buffer)})
		if err == nil && ecdsa.VerifyASN1(k, digest, der) {
			return nil
		}
	case *rsa.PublicKey:
		if pk, err := s.Signature.RSASSA(); err == nil && rsa.VerifyPKCS1v15(k, hash, digest, pk.Sig.Buffer) == nil {
			return nil
		}
		if pss, err := s.Signature.RSAPSS(); err == nil && rsa.VerifyPSS(k, hash, digest, pss.Sig.Buffer, nil) == nil {
			return nil
		}
	}
	return bad
}
