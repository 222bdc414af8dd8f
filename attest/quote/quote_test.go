package quote_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest/internal/softnode"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/internal/testenv"
)

var qualifying = bytes.Repeat([]byte{9}, 32)

func pcr(bank crypto.Hash, i int) softnode.PCR {
	h := bank.New()
	fmt.Fprint(h, "pcr ", i)
	return softnode.PCR{Bank: bank, Index: i, Value: h.Sum(nil)}
}

func pcrs(bank crypto.Hash, index ...int) (list []softnode.PCR) {
	for _, i := range index {
		list = append(list, pcr(bank, i))
	}
	return list
}

func sel(bank crypto.Hash, index ...int) []quote.Selection {
	return []quote.Selection{{Bank: bank, PCRs: index}}
}

func newAK(tb testing.TB, kind softnode.Kind) (*softnode.Key, *quote.Key) {
	tb.Helper()
	k := softnode.NewKey(kind, softnode.AKAttributes)
	ak, err := quote.ParseKey(k.Public)
	require.NoError(tb, err)
	assert.Equal(tb, softnode.Name(k.Public), ak.Name())
	return k, ak
}

func TestQuotesOfAllKinds(t *testing.T) {
	for _, kind := range []softnode.Kind{softnode.P256(), softnode.P384(), softnode.RSA(), softnode.RSAPSS()} {
		t.Run(kind.String(), func(t *testing.T) {
			k, ak := newAK(t, kind)
			list := append(pcrs(crypto.SHA256, 0, 7, 22), pcrs(crypto.SHA384, 7)...)
			want := append(sel(crypto.SHA256, 0, 7, 22), sel(crypto.SHA384, 7)...)
			data := softnode.Attested{ExtraData: qualifying, PCRs: list, Hash: kind.Hash, Clock: 5, Reset: 2, Restart: 1, Safe: 1, Firmware: 77}.Encode()
			v, err := ak.VerifyQuote(data, k.Sign(data), softnode.Values(list), want, qualifying)
			require.NoError(t, err)
			for _, p := range list {
				assert.Equal(t, p.Value, v.PCR(p.Bank, p.Index))
			}
			assert.Nil(t, v.PCR(crypto.SHA256, 1), "only what was selected is exposed (T3)")
			assert.Nil(t, v.PCR(crypto.SHA384, 0))
			assert.Len(t, v.Bank(crypto.SHA256), 3)
			assert.EqualValues(t, 5, v.Clock().Clock)
			assert.EqualValues(t, 2, v.Clock().ResetCount)
			assert.EqualValues(t, 77, v.Firmware())
			sig := k.Sign(data)
			for i := range sig { // no bit of a signature is free, but for an equivalent ECDSA one
				bad := bytes.Clone(sig)
				bad[i] ^= 0x40
				_, err := ak.VerifyQuote(data, bad, softnode.Values(list), want, qualifying)
				require.Contains(t, []reason.Code{reason.BadSignature, reason.SignatureScheme, reason.CutShort, reason.TrailingBytes}, reason.Of(err), "byte %d", i)
			}
		})
	}
}

// TestForgedQuotes is F1 to F6, F8, F11 and T2 to T5: each forgery is refused
// for its own reason. All but the first are signed by a real key, as an
// attacker who controls what is quoted, or how it is reported, would have them.
func TestForgedQuotes(t *testing.T) {
	k, ak := newAK(t, softnode.P256())
	_, other := newAK(t, softnode.P256())
	list, want := pcrs(crypto.SHA256, 0, 7), sel(crypto.SHA256, 0, 7)
	honest := softnode.Attested{ExtraData: qualifying, PCRs: list}
	values := softnode.Values(list)
	zero := make([]byte, 32)
	for _, tt := range []struct {
		name    string
		forge   func(a *softnode.Attested)
		values  []byte
		sel     []quote.Selection
		nonce   []byte
		class   error
		code    reason.Code
		ak      *quote.Key
		sign    func([]byte) []byte
		mutated func([]byte) []byte
	}{
		{name: "signed by another key", ak: other, class: quote.ErrSignature, code: reason.BadSignature},
		{name: "T2 magic is not a TPM's (CVE-2024-29038)", forge: func(a *softnode.Attested) { a.Magic = 0xFF544348 }, class: quote.ErrMalformed, code: reason.NotFromTPM},
		{name: "T2 a certification poses as a quote", forge: func(a *softnode.Attested) { a.Kind = 0x8017; a.Name = zero }, class: quote.ErrMalformed, code: reason.WrongKind},
		{name: "F1 value given twice", values: append(bytes.Clone(zero), values...), class: quote.ErrPCRMismatch, code: reason.TooManyValues},
		{name: "F1 one PCR's value for another", values: append(bytes.Clone(values[32:]), values[:32]...), class: quote.ErrPCRMismatch, code: reason.OtherValues},
		{name: "F2 lengths split anew: PCR 8 quoted for PCR 7", forge: func(a *softnode.Attested) { a.PCRs = pcrs(crypto.SHA256, 0, 8) }, class: quote.ErrSelection, code: reason.OtherPCRs},
		{name: "F2 another bank of the same length", forge: func(a *softnode.Attested) { a.Selection = []byte{0, 0, 0, 1, 0, 0x27, 3, 0x81, 0, 0} }, class: quote.ErrSelection, code: reason.OtherBank},
		{name: "F2 another bank beside", forge: func(a *softnode.Attested) { a.PCRs = append(pcrs(crypto.SHA256, 0, 7), pcrs(crypto.SHA384, 0)...) }, class: quote.ErrSelection, code: reason.MorePCRs},
		{name: "F5 SHA-1 bank quoted", forge: func(a *softnode.Attested) { a.Selection = []byte{0, 0, 0, 1, 0, 4, 3, 0x81, 0, 0} }, class: quote.ErrSelection, code: reason.SHA1Bank},
		{name: "T4 boot's PCR left out", forge: func(a *softnode.Attested) { a.PCRs = pcrs(crypto.SHA256, 7) }, class: quote.ErrSelection, code: reason.FewerPCRs},
		{name: "F4 empty selection quoted", forge: func(a *softnode.Attested) { a.PCRs = nil }, class: quote.ErrSelection, code: reason.NothingSelected},
		{name: "F4 no bank quoted", forge: func(a *softnode.Attested) { a.Selection = []byte{0, 0, 0, 0} }, class: quote.ErrSelection, code: reason.NothingSelected},
		{name: "F4 empty selection demanded", sel: []quote.Selection{}, class: quote.ErrSelection, code: reason.NothingSelected},
		{name: "F4 no PCR demanded", sel: sel(crypto.SHA256), class: quote.ErrSelection, code: reason.NothingSelected},
		{name: "F5 SHA-1 bank demanded", sel: sel(crypto.SHA1, 0, 7), class: quote.ErrSelection, code: reason.SHA1Bank},
		{name: "F6 no nonce quoted", forge: func(a *softnode.Attested) { a.ExtraData = nil }, class: quote.ErrNonce, code: reason.NoNonce},
		{name: "F6 no nonce wanted", forge: func(a *softnode.Attested) { a.ExtraData = nil }, nonce: []byte{}, class: quote.ErrNonce, code: reason.NoNonce},
		{name: "F6 short nonce wanted", forge: func(a *softnode.Attested) { a.ExtraData = qualifying[:20] }, nonce: qualifying[:20], class: quote.ErrNonce, code: reason.NoNonce},
		{name: "T1 stale nonce", forge: func(a *softnode.Attested) { a.ExtraData = zero }, class: quote.ErrNonce, code: reason.QuoteNonce},
		{name: "F11 trailing byte", forge: func(a *softnode.Attested) { a.Trailing = []byte{0} }, class: quote.ErrMalformed, code: reason.TrailingBytes},
		{name: "T3 fewer PCRs than demanded", forge: func(a *softnode.Attested) { a.PCRs = pcrs(crypto.SHA256, 0) }, values: values[:32], class: quote.ErrPCRMismatch, code: reason.TooFewValues},
		{name: "T3 more PCRs than demanded", forge: func(a *softnode.Attested) { a.PCRs = pcrs(crypto.SHA256, 0, 7, 8) }, class: quote.ErrSelection, code: reason.MorePCRs},
		{name: "F1 values are not those quoted", values: make([]byte, 64), class: quote.ErrPCRMismatch, code: reason.OtherValues},
		{name: "T3 selection of four bytes", forge: func(a *softnode.Attested) { a.Selection = []byte{0, 0, 0, 1, 0, 11, 4, 0x81, 0, 0, 0} }, class: quote.ErrSelection, code: reason.Encoding},
		{name: "T3 a bank twice", forge: func(a *softnode.Attested) { a.Selection = []byte{0, 0, 0, 2, 0, 11, 3, 1, 0, 0, 0, 11, 3, 0x80, 0, 0} }, class: quote.ErrSelection, code: reason.Encoding},
		{name: "T14 banks without end", forge: func(a *softnode.Attested) { a.Selection = []byte{0xff, 0xff, 0xff, 0xff} }, class: quote.ErrMalformed, code: reason.TooManyBanks},
		{name: "PCR 23 demanded, which software resets", sel: sel(crypto.SHA256, 0, 23), class: quote.ErrSelection, code: reason.ForbiddenPCR},
		{name: "PCRs demanded out of order", sel: sel(crypto.SHA256, 7, 0), class: quote.ErrSelection, code: reason.ForbiddenPCR},
		{name: "F8 RSA signature for an ECDSA key", sign: softnode.NewKey(softnode.RSA(), softnode.AKAttributes).Sign, class: quote.ErrSignature, code: reason.SignatureScheme},
		{name: "signature with another hash", sign: func(b []byte) []byte { s := k.Sign(b); s[3] = 0x0C; return s }, class: quote.ErrSignature, code: reason.SignatureScheme},
		{name: "signature of scheme NULL", sign: func([]byte) []byte { return []byte{0, 0x10} }, class: quote.ErrMalformed, code: reason.CutShort},
		{name: "no signature", sign: func([]byte) []byte { return nil }, class: quote.ErrMalformed, code: reason.CutShort},
		{name: "signature with a trailing byte", sign: func(b []byte) []byte { return append(k.Sign(b), 0) }, class: quote.ErrMalformed, code: reason.TrailingBytes},
		{name: "signature of zeros", sign: func([]byte) []byte { return []byte{0, 0x18, 0, 0x0B, 0, 1, 0, 0, 1, 0} }, class: quote.ErrSignature, code: reason.BadSignature},
		{name: "empty r and s", sign: func([]byte) []byte { return []byte{0, 0x18, 0, 0x0B, 0, 0, 0, 0} }, class: quote.ErrSignature, code: reason.BadSignature},
		{name: "huge", mutated: func(b []byte) []byte { return append(b, make([]byte, 2000)...) }, class: quote.ErrMalformed, code: reason.TooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := honest
			if tt.forge != nil {
				tt.forge(&a)
			}
			data := a.Encode()
			sign := k.Sign
			if tt.sign != nil {
				sign = tt.sign
			}
			sig := sign(data)
			if tt.mutated != nil {
				data = tt.mutated(data)
			}
			verify, v, s, n := ak, values, want, qualifying
			if tt.ak != nil {
				verify = tt.ak
			}
			if tt.values != nil {
				v = tt.values
			}
			if tt.sel != nil {
				s = tt.sel
			}
			if tt.nonce != nil {
				n = tt.nonce
			}
			got, err := verify.VerifyQuote(data, sig, v, s, n)
			require.ErrorIs(t, err, tt.class)
			require.Equal(t, tt.code, reason.Of(err))
			assert.Zero(t, got)
		})
	}
	data := honest.Encode()
	sig := k.Sign(data)
	_, err := ak.VerifyQuote(data, sig, values, want, qualifying)
	require.NoError(t, err, "the honest one")
	for i := range data { // every truncation, freshly signed
		cut := data[:i]
		_, err := ak.VerifyQuote(cut, k.Sign(cut), values, want, qualifying)
		require.ErrorIs(t, err, quote.ErrMalformed, "cut to %d bytes", i)
	}
}

// TestAttestationKeysRefused is T2 and F7: what may not attest.
func TestAttestationKeysRefused(t *testing.T) {
	ec := softnode.NewKey(softnode.P256(), softnode.AKAttributes)
	rs := softnode.NewKey(softnode.RSA(), softnode.AKAttributes)
	off := func(b []byte) []byte { b = bytes.Clone(b); b[len(b)-1] ^= 1; return b }
	small := softnode.NewKey(softnode.Kind{RSABits: 1024, Hash: crypto.SHA256}, softnode.AKAttributes)
	exponent := func(e byte) []byte { b := bytes.Clone(rs.Public); b[21] = e; return b }
	for name, tt := range map[string]struct {
		public []byte
		code   reason.Code
	}{
		"F7 NULL scheme":                  {ec.Encode(softnode.AKAttributes, 0x10, 0), reason.NullScheme},
		"F7 NULL scheme of an RSA key":    {rs.Encode(softnode.AKAttributes, 0x10, 0), reason.NullScheme},
		"SHA-1 scheme":                    {ec.Encode(softnode.AKAttributes, 0x18, 4), reason.SchemeHash},
		"RSA scheme on an ECC key":        {ec.Encode(softnode.AKAttributes, 0x14, 0x0B), reason.SchemeType},
		"ECDSA scheme on an RSA key":      {rs.Encode(softnode.AKAttributes, 0x18, 0x0B), reason.SchemeType},
		"ECDAA scheme":                    {ec.Encode(softnode.AKAttributes, 0x1A, 0x0B), reason.SchemeType},
		"not restricted: signs anything":  {ec.Encode(softnode.AKAttributes&^(1<<16), 0x18, 0x0B), reason.KeyAttributes},
		"not fixedTPM: can be duplicated": {ec.Encode(softnode.AKAttributes&^(1<<1), 0x18, 0x0B), reason.KeyAttributes},
		"not fixedParent":                 {ec.Encode(softnode.AKAttributes&^(1<<4), 0x18, 0x0B), reason.KeyAttributes},
		"not made in the TPM":             {ec.Encode(softnode.AKAttributes&^(1<<5), 0x18, 0x0B), reason.KeyAttributes},
		"does not sign":                   {ec.Encode(softnode.AKAttributes&^(1<<18), 0x18, 0x0B), reason.KeyAttributes},
		"decrypts too":                    {ec.Encode(softnode.AKAttributes|1<<17, 0x18, 0x0B), reason.KeyAttributes},
		"encryptedDuplication":            {ec.Encode(softnode.AKAttributes|1<<11, 0x18, 0x0B), reason.KeyAttributes},
		"X.509 signing key":               {ec.Encode(softnode.AKAttributes|1<<19, 0x18, 0x0B), reason.KeyAttributes},
		"reserved bits":                   {ec.Encode(softnode.AKAttributes|1<<31, 0x18, 0x0B), reason.KeyAttributes},
		"F11 trailing byte":               {append(bytes.Clone(ec.Public), 0), reason.TrailingBytes},
		"cut short":                       {ec.Public[:len(ec.Public)-1], reason.CutShort},
		"empty":                           {nil, reason.KeyType},
		"point off the curve":             {off(ec.Public), reason.OffCurve},
		"even modulus":                    {off(rs.Public), reason.RSASize},
		"RSA-1024":                        {small.Public, reason.RSASize},
		"exponent 1":                      {exponent(1), reason.RSAExponent},
		"exponent 3":                      {exponent(3), reason.RSAExponent},
		"key of a keyed hash":             {append([]byte{0, 8}, ec.Public[2:]...), reason.KeyType},
		"name algorithm SHA-1":            {append([]byte{0, 0x23, 0, 4}, ec.Public[4:]...), reason.NameAlgorithm},
		"symmetric parameters":            {bytes.Replace(ec.Public, []byte{0, 0x10, 0, 0x18}, []byte{0, 6, 0, 0x18}, 1), reason.NotSigning},
		"too long":                        {make([]byte, 5000), reason.TooLarge},
	} {
		_, err := quote.ParseKey(tt.public)
		class := quote.ErrKey
		if tt.code == reason.TrailingBytes || tt.code == reason.CutShort || tt.code == reason.TooLarge {
			class = quote.ErrMalformed
		}
		require.ErrorIs(t, err, class, name)
		require.Equal(t, tt.code, reason.Of(err), name)
		assert.True(t, strings.HasPrefix(err.Error(), "quote: "), name)
	}
	infinity := bytes.Clone(ec.Public)
	clear(infinity[len(infinity)-32:])
	clear(infinity[len(infinity)-66 : len(infinity)-34])
	_, err := quote.ParseKey(infinity)
	require.ErrorIs(t, err, quote.ErrKey)
	require.ErrorIs(t, err, reason.OffCurve)
}

// TestCertifiedKeysRefused is F9, F10 and T11.
func TestCertifiedKeysRefused(t *testing.T) {
	k, ak := newAK(t, softnode.P256())
	key := softnode.NewKey(softnode.P256(), softnode.KeyAttributes)
	certify := func(public []byte, nonce []byte) ([]byte, []byte) {
		data := softnode.Attested{Kind: 0x8017, ExtraData: nonce, Name: softnode.Name(public)}.Encode()
		return data, k.Sign(data)
	}
	data, sig := certify(key.Public, qualifying)
	got, err := ak.VerifyCertify(data, sig, key.Public, qualifying)
	require.NoError(t, err)
	assert.True(t, got.(*ecdsa.PublicKey).Equal(key.Signer.Public()))
	rs := softnode.NewKey(softnode.RSA(), softnode.KeyAttributes)
	open := rs.Encode(softnode.KeyAttributes, 0x10, 0) // a TLS key may leave the scheme to the caller
	data, sig = certify(open, qualifying)
	got, err = ak.VerifyCertify(data, sig, open, qualifying)
	require.NoError(t, err)
	assert.True(t, got.(*rsa.PublicKey).Equal(rs.Signer.Public()))

	for name, tt := range map[string]struct {
		public []byte
		code   reason.Code
	}{
		"F10 software key":       {key.Encode(1<<18|1<<6, 0x18, 0x0B), reason.SoftwareKey},
		"imported: not fixedTPM": {key.Encode(softnode.KeyAttributes&^2, 0x18, 0x0B), reason.SoftwareKey},
		"not fixedParent":        {key.Encode(softnode.KeyAttributes&^(1<<4), 0x18, 0x0B), reason.SoftwareKey},
		"made outside":           {key.Encode(softnode.KeyAttributes&^(1<<5), 0x18, 0x0B), reason.SoftwareKey},
		"restricted: another AK": {key.Encode(softnode.AKAttributes, 0x18, 0x0B), reason.CertifiedKeyUsage},
		"decryption key":         {key.Encode(softnode.KeyAttributes|1<<17, 0x18, 0x0B), reason.CertifiedKeyUsage},
		"encryptedDuplication":   {key.Encode(softnode.KeyAttributes|1<<11, 0x18, 0x0B), reason.CertifiedKeyUsage},
	} {
		data, sig := certify(tt.public, qualifying)
		_, err := ak.VerifyCertify(data, sig, tt.public, qualifying)
		require.ErrorIs(t, err, quote.ErrKey, name)
		require.Equal(t, tt.code, reason.Of(err), name)
	}
	outside := softnode.Attested{Kind: 0x8017, ExtraData: qualifying, Name: softnode.Name(key.Public), Qualified: softnode.Name(key.Public)}.Encode()
	_, err = ak.VerifyCertify(outside, k.Sign(outside), key.Public, qualifying)
	require.ErrorIs(t, err, quote.ErrKey, "F10 public key loaded from outside")
	require.ErrorIs(t, err, reason.LoadedKey)
	data, sig = certify(key.Public, make([]byte, 32))
	_, err = ak.VerifyCertify(data, sig, key.Public, qualifying)
	require.ErrorIs(t, err, quote.ErrNonce, "F9 stale")
	require.ErrorIs(t, err, reason.CertifyNonce)
	data, sig = certify(softnode.NewKey(softnode.P256(), softnode.KeyAttributes).Public, qualifying)
	_, err = ak.VerifyCertify(data, sig, key.Public, qualifying)
	require.ErrorIs(t, err, quote.ErrKey, "another key was certified")
	require.ErrorIs(t, err, reason.OtherKey)
	q := softnode.Attested{ExtraData: qualifying, PCRs: pcrs(crypto.SHA256, 0)}.Encode()
	_, err = ak.VerifyCertify(q, k.Sign(q), key.Public, qualifying)
	require.ErrorIs(t, err, quote.ErrMalformed, "a quote poses as a certification")
	require.ErrorIs(t, err, reason.WrongKind)
	data, sig = certify(key.Public, qualifying)
	sig[10] ^= 1
	_, err = ak.VerifyCertify(data, sig, key.Public, qualifying)
	require.ErrorIs(t, err, quote.ErrSignature)
	require.ErrorIs(t, err, reason.BadSignature)
}

// TestImportedKeysCertificationsRefused is T11 for the HMAC key: what its
// holder can say of an attestation key, and is not believed.
func TestImportedKeysCertificationsRefused(t *testing.T) {
	k, _ := newAK(t, softnode.P256())
	secret := bytes.Repeat([]byte{5}, 32)
	honest := softnode.Attested{Kind: 0x8017, ExtraData: qualifying, Name: softnode.Name(k.Public), Qualified: softnode.Qualified(0x4000000B, k.Public)}
	for _, tt := range []struct {
		name   string
		forge  func(a *softnode.Attested)
		sign   func([]byte) []byte
		key    []byte
		public []byte
		class  error
		code   reason.Code
	}{
		{name: "another HMAC key", key: qualifying, class: quote.ErrSignature, code: reason.BadSignature},
		{name: "HMAC key of no length", key: []byte{}, class: quote.ErrKey, code: reason.HMACKey},
		{name: "signed by an attestation key", sign: k.Sign, class: quote.ErrSignature, code: reason.SignatureScheme},
		{name: "signature with a trailing byte", sign: func(b []byte) []byte { return append(softnode.HMAC(secret, b), 0) }, class: quote.ErrMalformed, code: reason.TrailingBytes},
		{name: "no signature", sign: func([]byte) []byte { return nil }, class: quote.ErrMalformed, code: reason.CutShort},
		{name: "huge", forge: func(a *softnode.Attested) { a.Trailing = make([]byte, 2000) }, class: quote.ErrMalformed, code: reason.TooLarge},
		{name: "magic is not a TPM's", forge: func(a *softnode.Attested) { a.Magic = 1 }, class: quote.ErrMalformed, code: reason.NotFromTPM},
		{name: "a quote", forge: func(a *softnode.Attested) { a.Kind = 0x8018 }, class: quote.ErrMalformed, code: reason.WrongKind},
		{name: "trailing byte", forge: func(a *softnode.Attested) { a.Trailing = []byte{0} }, class: quote.ErrMalformed, code: reason.TrailingBytes},
		{name: "stale", forge: func(a *softnode.Attested) { a.ExtraData = make([]byte, 32) }, class: quote.ErrNonce, code: reason.CertifyNonce},
		{name: "another key", forge: func(a *softnode.Attested) { a.Name = softnode.Name([]byte("x")) }, class: quote.ErrKey, code: reason.OtherKey},
		{name: "public key loaded from outside", forge: func(a *softnode.Attested) { a.Qualified = a.Name }, class: quote.ErrKey, code: reason.LoadedKey},
		{name: "no attestation key", public: softnode.NewKey(softnode.P256(), softnode.KeyAttributes).Public, class: quote.ErrKey, code: reason.KeyAttributes},
	} {
		a, sign, key, public := honest, func(b []byte) []byte { return softnode.HMAC(secret, b) }, secret, k.Public
		if tt.forge != nil {
			tt.forge(&a)
		}
		if tt.sign != nil {
			sign = tt.sign
		}
		if tt.key != nil {
			key = tt.key
		}
		if tt.public != nil {
			public = tt.public
		}
		data := a.Encode()
		ak, _, err := quote.VerifyImported(key, data, sign(data), public, qualifying)
		require.ErrorIs(t, err, tt.class, tt.name)
		require.ErrorIs(t, err, tt.code, tt.name)
		assert.Nil(t, ak, tt.name)
	}
	data := honest.Encode()
	ak, primary, err := quote.VerifyImported(secret, data, softnode.HMAC(secret, data), k.Public, qualifying)
	require.NoError(t, err)
	assert.True(t, primary)
	assert.Equal(t, softnode.Name(k.Public), ak.Name())
	honest.Qualified = nil // in the owner's hierarchy
	data = honest.Encode()
	_, primary, err = quote.VerifyImported(secret, data, softnode.HMAC(secret, data), k.Public, qualifying)
	require.NoError(t, err)
	assert.False(t, primary)
}

// The quotes of real boots verify up to their selection, which has PCRs 16 and
// 23 in it; that is refused by what it is, not by accident.
func TestQuotesOfRealBoots(t *testing.T) {
	dirs, err := filepath.Glob(testenv.Corpus(t, "secureboot", "vm") + "/*/ak_pub.tpm2b")
	require.NoError(t, err)
	require.NotEmpty(t, dirs)
	for _, f := range dirs {
		read := func(name string) []byte {
			b, err := os.ReadFile(filepath.Join(filepath.Dir(f), name))
			require.NoError(t, err)
			return b
		}
		ak, err := quote.ParseKey(read("ak_pub.tpm2b")[2:])
		require.NoError(t, err)
		var values []byte
		for line := range strings.Lines(string(read("pcrs.txt"))) {
			var bank, digits string
			var i int
			_, err := fmt.Sscan(line, &bank, &i, &digits)
			require.NoError(t, err)
			if d, err := hex.DecodeString(digits); bank == "sha256" && i != 16 && i != 23 {
				require.NoError(t, err)
				values = append(values, d...)
			}
		}
		all := sel(crypto.SHA256, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 22)
		_, err = ak.VerifyQuote(read("quote_sha256.tpms_attest"), read("quote_sha256.tpmt_signature"), values, all, read("nonce.bin"))
		require.ErrorIs(t, err, quote.ErrSelection)
		require.ErrorIs(t, err, reason.MorePCRs)
		stale := sha256.Sum256(read("nonce.bin"))
		_, err = ak.VerifyQuote(read("quote_sha256.tpms_attest"), read("quote_sha256.tpmt_signature"), values, all, stale[:])
		require.ErrorIs(t, err, quote.ErrNonce)
		bad := read("quote_sha256.tpmt_signature")
		bad[20] ^= 1
		_, err = ak.VerifyQuote(read("quote_sha256.tpms_attest"), bad, values, all, read("nonce.bin"))
		require.ErrorIs(t, err, quote.ErrSignature)
	}
}

func FuzzVerifyQuote(f *testing.F) {
	k, ak := newAK(f, softnode.P256())
	list, want := pcrs(crypto.SHA256, 0, 7), sel(crypto.SHA256, 0, 7)
	data := softnode.Attested{ExtraData: qualifying, PCRs: list}.Encode()
	f.Add(data)
	f.Fuzz(func(t *testing.T, b []byte) { // signed anew: the parser sees everything
		v, err := ak.VerifyQuote(b, k.Sign(b), softnode.Values(list), want, qualifying)
		if err == nil {
			require.Equal(t, list[1].Value, v.PCR(crypto.SHA256, 7))
		}
		_, _ = ak.VerifyCertify(b, k.Sign(b), k.Public, qualifying)
		_, _, _ = quote.VerifyImported(qualifying, b, softnode.HMAC(qualifying, b), k.Public, qualifying)
	})
}

func FuzzParseKey(f *testing.F) {
	f.Add(softnode.NewKey(softnode.P256(), softnode.AKAttributes).Public)
	f.Add(softnode.NewKey(softnode.P384(), softnode.AKAttributes).Public)
	f.Add(softnode.NewKey(softnode.RSA(), softnode.AKAttributes).Public)
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := quote.ParseKey(b); err == nil {
			require.NotNil(t, k.Public())
			require.NotEmpty(t, k.Name())
		}
	})
}

func FuzzSignature(f *testing.F) {
	k, ak := newAK(f, softnode.P256())
	list, want := pcrs(crypto.SHA256, 0), sel(crypto.SHA256, 0)
	data := softnode.Attested{ExtraData: qualifying, PCRs: list}.Encode()
	_, forged := newAK(f, softnode.P256())
	f.Add(k.Sign(data))
	f.Fuzz(func(t *testing.T, sig []byte) {
		_, _ = ak.VerifyQuote(data, sig, softnode.Values(list), want, qualifying)
		_, err := forged.VerifyQuote(data, sig, softnode.Values(list), want, qualifying)
		require.NotEmpty(t, reason.Of(err))
	})
}
