package spdm

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"io"
	"math"
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

// player answers with what the reference responder answered, and keeps what it
// was asked.
type player struct {
	messages [][]byte
	asked    [][]byte
}

func (p *player) Exchange(_ context.Context, req []byte) ([]byte, error) {
	p.asked = append(p.asked, bytes.Clone(req))
	if 2*len(p.asked) > len(p.messages) {
		return nil, io.ErrUnexpectedEOF
	}
	return p.messages[2*len(p.asked)-1], nil
}

func (p *player) Close() error { return nil }

// The requester's requests are, byte for byte, those of the recorded exchanges
// with the reference responder: but for what a requester chooses (its own
// capabilities, times and sizes, the algorithms it offers, how much of a chain it asks
// for at once, no measurement summary) and for its nonce. And a recorded session
// that is played back to it proves nothing.
func TestRequestsAreThoseOfTheRecordedExchanges(t *testing.T) {
	chosen := map[byte][][2]int{ // from, to
		reqCapabilities: {{5, 6}, {8, 20}}, reqAlgorithms: {{8, 16}}, reqCertificate: {{6, 8}}, reqChallenge: {{3, 44}},
	}
	for name := range traces {
		t.Run(name, func(t *testing.T) {
			p := &player{messages: trace(t, name)}
			slot := 0
			if strings.Contains(name, "slot1") {
				slot = 1
			}
			chip, err := NewRequester(p, Config{Slot: slot, Scheme: Scheme{MinVersion: Version11}})
			require.NoError(t, err)
			_, err = chip.Prove(t.Context(), moduleid.NewChallenge("node", "bay"))
			require.ErrorIs(t, err, moduleid.ErrRefused)
			require.ErrorContains(t, err, "CHALLENGE_AUTH")
			last := 0
			for i, got := range p.asked {
				want := p.messages[2*i]
				require.Len(t, got, len(want), "request %d", i)
				for _, r := range chosen[want[1]] {
					clear(want[min(r[0], len(want)):min(r[1], len(want))])
					if want[1] == reqAlgorithms {
						assert.NotZero(t, le.Uint32(got[8:])&p.asym(), "the recorded algorithm is offered")
					}
					clear(got[min(r[0], len(got)):min(r[1], len(got))])
				}
				assert.Equal(t, hex.EncodeToString(want), hex.EncodeToString(got), "request %d", i)
				last = int(want[1])
			}
			assert.Equal(t, reqChallenge, last)
		})
	}
}

// asym is what the responder chose.
func (p *player) asym() uint32 { return le.Uint32(p.messages[5][12:]) }

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

// A chain with a key so large that a signature by it takes seconds is refused
// before one is checked.
func TestThreat17HugeKeys(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	n := new(big.Int).Lsh(big.NewInt(1), 16383)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true, IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &rsa.PublicKey{N: n.Add(n, big.NewInt(1)), E: math.MaxInt32}, key)
	require.NoError(t, err)
	huge, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	leaf, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true}, tmpl, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(leaf)
	require.NoError(t, err)
	r, err := NewResponder(ResponderConfig{Key: key, Chain: []*x509.Certificate{cert, huge}})
	require.NoError(t, err)
	chip, err := NewRequester(Loopback(r), Config{})
	require.NoError(t, err)
	_, err = chip.Prove(t.Context(), moduleid.NewChallenge("node", "bay"))
	require.ErrorIs(t, err, moduleid.ErrRefused)
	require.ErrorContains(t, err, "16384 bits")
}
