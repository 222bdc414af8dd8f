package ear_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/veraison/go-cose"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/ca"
	"github.com/trusttree/trusttree/attest/ear"
	"github.com/trusttree/trusttree/attest/internal/softnode"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/registry"
)

// result is a real one: it can't be had otherwise.
func result(tb testing.TB) (*attest.Result, *softnode.Node) {
	tb.Helper()
	maker := softnode.NewMaker()
	owner, err := ca.NewEphemeral("owner")
	require.NoError(tb, err)
	devices, challenges := registry.NewMemoryDevices(), registry.NewMemoryChallenges(0, nil)
	r, err := attest.NewRegistrar(attest.RegistrarConfig{
		Endorsers: attest.Endorsers{Anchors: []*x509.Certificate{maker.Root}}, Devices: devices, Challenges: challenges, Issuer: owner,
		TrustDomain: "city.example", Admit: func(context.Context, attest.Applicant) error { return nil },
	})
	require.NoError(tb, err)
	v, err := attest.NewVerifier(attest.VerifierConfig{
		Devices: devices, Challenges: challenges, PCRs: []quote.Selection{{Bank: crypto.SHA256, PCRs: []int{7}}},
		Appraisers: []attest.Appraiser{func(context.Context, attest.Input) attest.Opinion {
			return attest.Opinion{Status: attest.StatusAffirming, Reasons: []attest.Reason{{Code: "boot", Detail: "as published"}},
				Claims: map[string]attest.Status{"executables": attest.StatusAffirming}}
		}},
	})
	require.NoError(tb, err)
	n := softnode.NewNode(maker)
	ac, err := r.Begin(tb.Context(), n.EnrollmentRequest())
	require.NoError(tb, err)
	rsp, err := n.Activate(ac)
	require.NoError(tb, err)
	_, err = r.Complete(tb.Context(), rsp)
	require.NoError(tb, err)
	ch, err := v.Challenge(tb.Context(), n.Session(nil))
	require.NoError(tb, err)
	s := n.Session(ch.Nonce)
	got, err := v.Appraise(tb.Context(), s, n.Evidence(tb.Context(), s, ch))
	require.NoError(tb, err)
	return got, n
}

func TestTokens(t *testing.T) {
	r, n := result(t)
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	id := ear.VerifierID{Developer: "city of example", Build: "v1"}
	for _, key := range []crypto.Signer{p256, p384, ed} {
		token, err := ear.Sign(r, id, key)
		require.NoError(t, err)
		c, err := ear.Verify(token, key.Public(), time.Now())
		require.NoError(t, err)
		assert.Equal(t, n.Device, c.Device())
		assert.Equal(t, n.LeafSPKI(), c.LeafSPKI())
		assert.Equal(t, attest.PurposeAttest, c.Purpose())
		assert.Equal(t, id, c.Verifier())
		assert.Equal(t, []attest.Reason{{Code: "boot", Detail: "as published"}}, c.Reasons())
		assert.Equal(t, r.Expires().Unix(), c.Expires().Unix())
		assert.Equal(t, r.IssuedAt().Unix(), c.IssuedAt().Unix())
		assert.Equal(t, map[string]attest.Status{"instance-identity": attest.StatusAffirming, "executables": attest.StatusAffirming}, c.Vector())
		for _, wrap := range []func([]byte) ([]byte, error){ear.Wrap, ear.WrapJSON} {
			record, err := wrap(token)
			require.NoError(t, err)
			back, err := ear.Unwrap(record)
			require.NoError(t, err)
			assert.Equal(t, token, back)
		}
		_, err = ear.Verify(token, key.Public(), r.Expires())
		require.ErrorIs(t, err, ear.ErrExpired)
		_, err = ear.Verify(token, key.Public(), time.Now().Add(-time.Hour))
		require.ErrorIs(t, err, ear.ErrExpired)
		if key != p256 {
			continue
		}
		for i := range token {
			bad := append([]byte(nil), token...)
			bad[i] ^= 1
			_, err := ear.Verify(bad, key.Public(), time.Now())
			require.Error(t, err, "byte %d", i)
		}
	}
	token, err := ear.Sign(r, id, p256)
	require.NoError(t, err)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	_, err = ear.Verify(token, other.Public(), time.Now())
	require.ErrorIs(t, err, ear.ErrSignature)
	_, err = ear.Verify(token, p384.Public(), time.Now())
	require.ErrorIs(t, err, ear.ErrSignature, "the algorithm is the key's")
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	_, err = ear.Sign(r, id, rs)
	require.Error(t, err)
	_, err = ear.Sign(nil, id, p256)
	require.Error(t, err)
	_, err = ear.Sign(&attest.Result{}, id, p256)
	require.Error(t, err, "a Result that no Verifier made")
	_, err = ear.Verify(make([]byte, ear.MaxSize+1), p256.Public(), time.Now())
	require.ErrorIs(t, err, ear.ErrMalformed)

	b, err := ear.JSON(r, id)
	require.NoError(t, err)
	var m map[string]any
	require.NoError(t, json.Unmarshal(b, &m))
	assert.Equal(t, ear.Profile, m["eat_profile"])
	assert.EqualValues(t, 2, m["submods"].(map[string]any)["node"].(map[string]any)["ear.status"])
}

// What the verifier's own key signed, and is not a claims set of ours.
func TestForeignClaims(t *testing.T) {
	r, _ := result(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	token, err := ear.Sign(r, ear.VerifierID{}, key)
	require.NoError(t, err)
	var m cose.Sign1Message
	require.NoError(t, m.UnmarshalCBOR(token))
	for name, change := range map[string]func(map[int]any){
		"another profile": func(c map[int]any) { c[265] = "tag:example.com,2026:x" },
		"unknown claim":   func(c map[int]any) { c[4711] = true },
		"no node":         func(c map[int]any) { delete(c, 256) },
		"no TLS key":      func(c map[int]any) { delete(c, 10) },
		"no verdict":      func(c map[int]any) { delete(c, 266) },
		"contraindicated": func(c map[int]any) { c[266].(map[any]any)["node"].(map[any]any)[uint64(1000)] = 96 },
		"no status":       func(c map[int]any) { delete(c[266].(map[any]any)["node"].(map[any]any), uint64(1000)) },
		"claim not affirmed": func(c map[int]any) {
			c[266].(map[any]any)["node"].(map[any]any)[uint64(1001)].(map[any]any)[uint64(2)] = 33
		},
		"claim of no name": func(c map[int]any) {
			c[266].(map[any]any)["node"].(map[any]any)[uint64(1001)].(map[any]any)[uint64(8)] = 2
		},
		"node of all zero": func(c map[int]any) { c[256] = append([]byte{1}, make([]byte, 32)...) },
	} {
		var c map[int]any
		require.NoError(t, cbor.Unmarshal(m.Payload, &c))
		change(c)
		payload, err := cbor.Marshal(c)
		require.NoError(t, err)
		forged := cose.NewSign1Message()
		forged.Headers.Protected.SetAlgorithm(cose.AlgorithmES256)
		forged.Payload = payload
		signer, err := cose.NewSigner(cose.AlgorithmES256, key)
		require.NoError(t, err)
		require.NoError(t, forged.Sign(rand.Reader, nil, signer))
		b, err := forged.MarshalCBOR()
		require.NoError(t, err)
		_, err = ear.Verify(b, key.Public(), time.Now())
		require.ErrorIs(t, err, ear.ErrMalformed, name)
	}
}

var updateGolden = flag.Bool("update", false, "write the golden files anew")

// What one version signed, the next one reads; and what it writes has the same
// labels.
func TestGoldenToken(t *testing.T) {
	if *updateGolden {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		r, _ := result(t)
		token, err := ear.Sign(r, ear.VerifierID{Developer: "city of example", Build: "v1"}, key)
		require.NoError(t, err)
		spki, err := x509.MarshalPKIXPublicKey(key.Public())
		require.NoError(t, err)
		require.NoError(t, os.WriteFile("testdata/token.v1.cbor", token, 0o644))
		require.NoError(t, os.WriteFile("testdata/token.v1.key.der", spki, 0o644))
	}
	token, err := os.ReadFile("testdata/token.v1.cbor")
	require.NoError(t, err)
	spki, err := os.ReadFile("testdata/token.v1.key.der")
	require.NoError(t, err)
	key, err := x509.ParsePKIXPublicKey(spki)
	require.NoError(t, err)
	var m cose.Sign1Message
	require.NoError(t, m.UnmarshalCBOR(token))
	var c map[int]any
	require.NoError(t, cbor.Unmarshal(m.Payload, &c))
	at := time.Unix(int64(c[6].(uint64)), 0)
	got, err := ear.Verify(token, key, at.Add(time.Minute))
	require.NoError(t, err)
	assert.Equal(t, at, got.IssuedAt())
	assert.Equal(t, at.Add(10*time.Minute), got.Expires())
	assert.Equal(t, "attest", got.Purpose())
	assert.Equal(t, ear.VerifierID{Developer: "city of example", Build: "v1"}, got.Verifier())
	assert.Equal(t, []attest.Reason{{Code: "boot", Detail: "as published"}}, got.Reasons())
	assert.Equal(t, attest.StatusAffirming, got.Vector()["executables"])

	r, _ := result(t)
	fresh, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	token, err = ear.Sign(r, ear.VerifierID{Developer: "x", Build: "y"}, fresh)
	require.NoError(t, err)
	require.NoError(t, m.UnmarshalCBOR(token))
	var now map[int]any
	require.NoError(t, cbor.Unmarshal(m.Payload, &now))
	assert.Equal(t, labels(c), labels(now), "the format changed: that needs a new profile")
}

// labels is the structure of a claims set without its values.
func labels(v any) any {
	switch v := v.(type) {
	case map[int]any:
		out := map[string]any{}
		for k, e := range v {
			out[fmt.Sprint(k)] = labels(e)
		}
		return out
	case map[any]any:
		out := map[string]any{}
		for k, e := range v {
			out[fmt.Sprint(k)] = labels(e)
		}
		return out
	}
	return fmt.Sprintf("%T", v)
}

// Records that are no CMW of a token.
func TestForeignRecords(t *testing.T) {
	enc := func(v ...any) []byte {
		b, err := cbor.Marshal(v)
		require.NoError(t, err)
		return b
	}
	for name, record := range map[string][]byte{
		"nothing": nil, "garbage": {1, 2, 3}, "no value": enc(ear.MediaType), "another type": enc("application/json", []byte{1}),
		"evidence": enc(ear.MediaType, []byte{1}, 4), "four elements": enc(ear.MediaType, []byte{1}, 8, 8), "empty": enc(ear.MediaType, []byte{}),
		"number for a type": enc(5, []byte{1}), "trailing data": append(enc(ear.MediaType, []byte{1}), 0),
		"JSON of another type": []byte(`["a/b","AQ",8]`), "JSON padded": []byte(`["application/eat+cwt","AQ==",8]`), "JSON evidence": []byte(`["application/eat+cwt","AQ",4]`),
		"JSON cut short": []byte(`["application/eat+cwt","AQ"`), "huge": make([]byte, 3*ear.MaxSize),
	} {
		_, err := ear.Unwrap(record)
		require.ErrorIs(t, err, ear.ErrMalformed, name)
	}
	got, err := ear.Unwrap(enc(ear.MediaType, []byte{1}))
	require.NoError(t, err, "without indicator")
	assert.Equal(t, []byte{1}, got)
	_, err = ear.Wrap(nil)
	require.ErrorIs(t, err, ear.ErrMalformed)
	_, err = ear.WrapJSON(make([]byte, ear.MaxSize+1))
	require.ErrorIs(t, err, ear.ErrMalformed)
}

func FuzzVerify(f *testing.F) {
	r, _ := result(f)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(f, err)
	token, err := ear.Sign(r, ear.VerifierID{}, key)
	require.NoError(f, err)
	f.Add(token)
	record, err := ear.Wrap(token)
	require.NoError(f, err)
	f.Add(record)
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = ear.Verify(b, key.Public(), time.Now())
		if token, err := ear.Unwrap(b); err == nil {
			_, _ = ear.Verify(token, key.Public(), time.Now())
		}
	})
}
