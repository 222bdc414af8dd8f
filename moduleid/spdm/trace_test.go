package spdm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/moduleid"
)

// trace reads a recorded exchange with DMTF's reference responder.
func trace(t testing.TB, name string) [][]byte {
	t.Helper()
	data, err := os.ReadFile(testenv.Corpus(t, "spdm-atecc", name))
	require.NoError(t, err)
	var f struct {
		Messages []struct{ Dir, Hex string } `json:"messages"`
	}
	require.NoError(t, json.Unmarshal(data, &f))
	var out [][]byte
	for _, m := range f.Messages {
		p, err := hex.DecodeString(m.Hex)
		require.NoError(t, err)
		out = append(out, p)
	}
	return out
}

func replay(messages [][]byte) (*transcript, error) {
	var t transcript
	for i := 0; i+1 < len(messages); i += 2 {
		if err := t.add(messages[i], messages[i+1]); err != nil {
			return nil, err
		}
	}
	return &t, nil
}

var traces = map[string]string{
	"probe-v11-p256.json": "ecp256/ca.cert.der", "probe-v12-p256.json": "ecp256/ca.cert.der", "probe-v12-slot1-chunk200.json": "ecp256/ca1.cert.der",
	"probe-v12-p384.json": "ecp384/ca.cert.der", "probe-v13-p384.json": "ecp384/ca.cert.der",
}

func TestReferenceResponderTracesVerify(t *testing.T) {
	for name, root := range traces {
		t.Run(name, func(t *testing.T) {
			got, err := replay(trace(t, name))
			require.NoError(t, err)
			assert.Len(t, got.challenges, 2)
			require.Len(t, got.measurements, 1)
			assert.NotEmpty(t, got.measurements[0].blocks)
			der, err := os.ReadFile(testenv.Corpus(t, "spdm-atecc", "certs", root))
			require.NoError(t, err)
			ca, err := x509.ParseCertificate(der)
			require.NoError(t, err)
			assert.True(t, got.certs[len(got.certs)-1].Equal(ca))
		})
	}
}

// recorded is a scheme for exchanges with a requester of other nonces.
type recorded struct{ t *transcript }

func (recorded) Name() string { return "recorded" }

func (r recorded) Check(moduleid.Challenge, *moduleid.Evidence) (*moduleid.Proof, error) {
	p := &moduleid.Proof{Chain: r.t.certs, AnyDigest: r.t.version < Version12 && onlyTLS(r.t.certs[0])}
	return p, identify(r.t, p)
}

// The certificates of the reference responder pass a verifier's policy.
func TestReferenceResponderIsAdmitted(t *testing.T) {
	for name, root := range traces {
		t.Run(name, func(t *testing.T) {
			got, err := replay(trace(t, name))
			require.NoError(t, err)
			for file, want := range map[string]bool{root: true, "microchip-root-ca-002.der": false} {
				der, err := os.ReadFile(testenv.Corpus(t, "spdm-atecc", "certs", file))
				require.NoError(t, err)
				ca, err := x509.ParseCertificate(der)
				require.NoError(t, err)
				pool := x509.NewCertPool()
				pool.AddCert(ca)
				v := &moduleid.Verifier{Schemes: []moduleid.Scheme{recorded{got}}, UnsafeNoRevocations: true,
					Classes:    map[string]moduleid.Class{"radio": {Members: pool}},
					Connectors: map[string]moduleid.Connector{"bay": {Classes: []string{"radio"}}},
					Now:        func() time.Time { return time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC) }}
				_, err = v.Verify(moduleid.NewChallenge("node", "bay"), &moduleid.Evidence{Scheme: "recorded"})
				if want {
					require.NoError(t, err)
				} else {
					require.ErrorIs(t, err, moduleid.ErrRefused)
				}
			}
		})
	}
}

// Each message of a recorded exchange that a signature covers is refused with
// any one of its bytes changed.
func TestEverySingleByteChangeIsRefused(t *testing.T) {
	for name := range traces {
		t.Run(name, func(t *testing.T) {
			messages, step := trace(t, name), testenv.N(17, 1)
			// The second CHALLENGE covers A alone, so that B is flipped before
			// the first one.
			for i, m := range messages {
				end := len(messages)
				if i < len(messages)-4 {
					end = len(messages) - 4
				}
				// All of them on request; every message at several places always.
				for at := i % step; at < len(m); at += step {
					m[at] ^= 1 << (at % 8)
					_, err := replay(messages[:end])
					m[at] ^= 1 << (at % 8)
					require.Error(t, err, "message %d, byte %d", i, at)
				}
			}
			_, err := replay(messages)
			require.NoError(t, err)
		})
	}
}

// The same without recorded data, for every byte and every bit of the proof's
// own signature.
func TestEverySingleByteChangeOfAProofIsRefused(t *testing.T) {
	r, c := fuzzResponder(t)
	scheme := Scheme{Measurements: true}
	chip, err := NewRequester(Loopback(r), Config{Scheme: scheme})
	require.NoError(t, err)
	e, err := chip.Prove(t.Context(), c)
	require.NoError(t, err)
	for at := range e.Message {
		e.Message[at] ^= 1 << (at % 8)
		_, err := scheme.Check(c, e)
		require.Error(t, err, "byte %d", at)
		e.Message[at] ^= 1 << (at % 8)
	}
	for _, n := range []int{0, 1, 4, len(e.Message) / 2, len(e.Message) - 1} {
		_, err := scheme.Check(c, &moduleid.Evidence{Scheme: SchemeName, Message: e.Message[:n]})
		require.Error(t, err, "cut to %d bytes", n)
	}
	_, err = scheme.Check(c, e)
	require.NoError(t, err)
}

func TestMicrochipTemplateCertificatesParse(t *testing.T) {
	for _, name := range []string{"microchip-root-ca-002.der", "tng-template-device3.der", "tng-template-signer1.der"} {
		der, err := os.ReadFile(testenv.Corpus(t, "spdm-atecc", "certs", name))
		require.NoError(t, err)
		_, err = x509.ParseCertificate(der)
		require.NoError(t, err, name)
	}
}

func FuzzTranscript(f *testing.F) {
	r, c := fuzzResponder(f)
	chip, err := NewRequester(Loopback(r), Config{Scheme: Scheme{Measurements: true}})
	require.NoError(f, err)
	e, err := chip.Prove(f.Context(), c)
	require.NoError(f, err)
	f.Add(e.Message)
	good := string(e.Message)
	f.Fuzz(func(t *testing.T, message []byte) {
		_, err := Scheme{}.Check(c, &moduleid.Evidence{Scheme: SchemeName, Message: message})
		if err == nil && string(message) != good {
			// Only the measurements may be left out where nobody asks for them.
			require.True(t, strings.HasPrefix(good, string(message)))
		}
	})
}

func fuzzResponder(t testing.TB) (*Responder, moduleid.Challenge) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	r, err := NewResponder(ResponderConfig{Key: key, Chain: []*x509.Certificate{cert},
		Measurements: []moduleid.Measurement{{Index: 1, Kind: "firmware", Value: []byte("v1")}}})
	require.NoError(t, err)
	return r, moduleid.NewChallenge("node", "bay")
}

func FuzzResponder(f *testing.F) {
	for _, m := range [][]byte{{0x10, 0x84, 0, 0}, {0x12, 0xe1, 0, 0}, {0x12, 0x81, 0, 0}} {
		f.Add(m)
	}
	r, _ := fuzzResponder(f)
	f.Fuzz(func(t *testing.T, m []byte) {
		x := exchange{r: &Requester{}}
		x.t.version = Version12
		for _, req := range [][]byte{{0x10, reqVersion, 0, 0}, x.capabilities(), x.algorithms(), m} {
			require.GreaterOrEqual(t, len(r.Respond(req)), 4)
		}
	})
}

func FuzzFraming(f *testing.F) {
	f.Add([]byte{6, 0, 1, 5, 0x10, 4, 0, 0})
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 5, 5, 0x10, 4, 0, 0})
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 12, 1, 0, 1, 0, 3, 0, 0, 0, 0x10, 4, 0, 0})
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 8, 6, 0, 1, 5, 0x10, 4, 0, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, fr := range []framing{tcpFraming{}, emuFraming{BindingNone}, emuFraming{BindingMCTP}, emuFraming{BindingPCIDOE}, emuFraming{BindingTCP}} {
			m, err := fr.read(bytes.NewReader(p))
			if err == nil {
				require.LessOrEqual(t, len(m), maxFrame)
			}
		}
	})
}

func FuzzTcbInfo(f *testing.F) {
	f.Add([]byte{0x30, 0x03, 0x83, 0x01, 0x07})
	f.Fuzz(func(t *testing.T, der []byte) { _, _ = tcbInfo(der, 0); _, _ = spdmIDs(der) })
}
