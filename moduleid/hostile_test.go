package moduleid_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"io"
	"math"
	"math/big"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
	"github.com/trusttree/trusttree/moduleid/spdm"
)

// patience is longer than anything that ends by itself.
const patience = 2 * time.Minute

// within fails the test when f does not return.
func within(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(patience):
		require.Fail(t, "it does not return")
	}
}

// stuckSigner never answers until it is let go.
type stuckSigner struct {
	crypto.Signer
	asked chan struct{}
	let   chan struct{}
}

func (s *stuckSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	s.asked <- struct{}{}
	<-s.let
	return nil, errors.New("let go")
}

// A signer that hangs holds up neither its own bay beyond the timeout nor those
// beside it, nor the removal of what hangs.
func TestThreat14HangingSignerDoesNotHoldItsBay(t *testing.T) {
	p := newPole(t, "bay1")
	s := &stuckSigner{asked: make(chan struct{}, 8), let: make(chan struct{})}
	defer close(s.let)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	s.Signer = key
	cert, err := p.ca.Issue("token", key.Public(), nil)
	require.NoError(t, err)
	p.v.Connectors["bay2"] = moduleid.Connector{Classes: []string{"camera"}}
	p.bays = append(p.bays, moduleid.BayConfig{Connector: "bay2", Timeout: 50 * time.Millisecond, Open: func(context.Context) (moduleid.Chip, error) {
		return moduleid.FromSigner(s, []*x509.Certificate{cert})
	}})
	inv := p.inventory(t)
	within(t, func() {
		snapshot, err := inv.AdmitAll(t.Context())
		assert.Equal(t, moduleid.ReasonSilent, reasonOf(t, err))
		assert.True(t, snapshot[0].Admitted())
		assert.Equal(t, moduleid.ReasonSilent, snapshot[1].Reason)
		assert.NoError(t, inv.Bay("bay2").Removed(t.Context()))
	})
}

// stuckChip does not even close.
type stuckChip struct{ let chan struct{} }

func (c stuckChip) Prove(context.Context, moduleid.Challenge) (*moduleid.Evidence, error) {
	return nil, errors.New("no")
}

func (c stuckChip) Close() error { <-c.let; return nil }

func TestThreat14ChipThatDoesNotClose(t *testing.T) {
	p := newPole(t, "bay1")
	c := stuckChip{make(chan struct{})}
	defer close(c.let)
	p.bays[0].Open = func(context.Context) (moduleid.Chip, error) { return c, nil }
	inv := p.inventory(t)
	within(t, func() {
		_, err := inv.Bay("bay1").Admit(t.Context())
		assert.Equal(t, moduleid.ReasonSilent, reasonOf(t, err))
	})
}

// A responder that greets and then says nothing: the bay gives up and closes the
// connection while the exchange still ends. The race detector looks on.
func TestThreat14SilentResponderIsClosedWhileItIsAsked(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = conn.Write([]byte("\x00\x00\xde\xad\x00\x00\x00\x01\x00\x00\x00\x0eServer Hello!\x00"))
				_, _ = io.Copy(io.Discard, conn)
			}()
		}
	}()
	for name, dial := range map[string]func(context.Context, string) (spdm.Transport, error){"TCP": spdm.DialTCP, "emulator": spdm.DialEmulator} {
		t.Run(name, func(t *testing.T) {
			p := newPole(t, "bay1")
			p.bays[0].Timeout = 50 * time.Millisecond
			p.bays[0].Open = func(ctx context.Context) (moduleid.Chip, error) {
				tr, err := dial(ctx, l.Addr().String())
				if err != nil {
					return nil, err
				}
				return spdm.NewRequester(tr, spdm.Config{})
			}
			inv := p.inventory(t)
			within(t, func() {
				for range 8 {
					_, err := inv.Bay("bay1").Admit(t.Context())
					assert.Error(t, err)
				}
			})
		})
	}
}

// hugeRSA is a public key with which a signature takes seconds.
func hugeRSA(bits int) *rsa.PublicKey {
	n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
	return &rsa.PublicKey{N: n.Add(n, big.NewInt(1)), E: math.MaxInt32}
}

// Certificates with keys so large that one signature costs seconds are refused
// before any signature by them is checked, in every place of the chain.
func TestThreat17HugeKeys(t *testing.T) {
	p := newPole(t, "bay1")
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	issue := func(key any, ca bool) []byte {
		c := &x509.Certificate{SerialNumber: big.NewInt(9), Subject: p.ca.Certificate.Subject, RawSubject: p.ca.Certificate.RawSubject,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: ca, BasicConstraintsValid: true}
		der, err := x509.CreateCertificate(rand.Reader, c, c, key, signer)
		require.NoError(t, err)
		return der
	}
	for name, chain := range map[string][][]byte{
		"leaf":   {issue(hugeRSA(16384), false)},
		"issuer": {p.certs["bay1"].Raw, issue(hugeRSA(16384), true)},
	} {
		_, err := p.v.Verify(moduleid.NewChallenge(node, "bay1"), &moduleid.Evidence{Scheme: "signer.v1", Chain: chain, Signature: make([]byte, 64)})
		assert.Equal(t, moduleid.ReasonMalformed, reasonOf(t, err), name)
		assert.ErrorContains(t, err, "16384", name)
	}
}

// A report of millions of empty elements would take far more memory than it has
// bytes.
func TestThreat18MillionsOfElements(t *testing.T) {
	v := &moduleid.Verifier{}
	for name, body := range map[string]string{
		"modules": `{"version":2,"node":"n","salt":"","pcr":13,"log":[],"modules":[` + strings.Repeat("{},", 1<<20) + `{}]}`,
		"records": `{"version":2,"node":"n","salt":"","pcr":13,"modules":[],"log":[` + strings.Repeat("{},", 1<<20) + `{}]}`,
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := v.VerifyReport(moduleid.ReportInput{Body: []byte(body), Node: "n", Nonce: make([]byte, 32)})
		runtime.ReadMemStats(&after)
		require.ErrorIs(t, err, moduleid.ErrReport, name)
		assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(6*len(body)), name)
	}
}

// babbler is refused by its driver with words that are larger, and more, than a
// report has room for, and no text at all.
type babbler struct{ findings []moduleid.Finding }

func (b babbler) Prove(_ context.Context, c moduleid.Challenge) (*moduleid.Evidence, error) {
	return nil, &moduleid.RefusedError{ID: strings.Repeat("i", 4096), Findings: b.findings, Read: bytes.Repeat([]byte{0xff}, 1<<20)}
}

func (babbler) Close() error { return nil }

// What a hostile module makes a driver say does not cost the node its report.
func TestThreat18WordsOfARefusalDoNotBreakTheReport(t *testing.T) {
	for name, f := range map[string][]moduleid.Finding{
		"no text":        {{Reason: moduleid.ReasonProof, Detail: strings.Repeat("\xff", 4096)}},
		"cut in a rune":  {{Reason: moduleid.ReasonProof, Detail: "x" + strings.Repeat("€", 4096)}},
		"empty reason":   {{Reason: moduleid.ReasonProof, Detail: "a"}, {Detail: "b"}},
		"large reason":   {{Reason: moduleid.ReasonProof, Detail: "a"}, {Reason: moduleid.Reason(strings.Repeat("r", 4096))}},
		"large first":    {{Reason: moduleid.Reason(strings.Repeat("r", 4096)), Detail: "a"}},
		"unnamed":        {{Detail: "a"}},
		"reason of ages": {{Reason: moduleid.Reason("\xff\xfe")}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPole(t, "bay1", "bay2")
			p.bays[1].Open = func(context.Context) (moduleid.Chip, error) { return babbler{f}, nil }
			inv := p.inventory(t)
			nonce := bytes.Repeat([]byte{7}, 32)
			_, body, err := inv.Collect(t.Context(), nonce)
			require.NoError(t, err)
			value, err := p.pcrs.ReadPCR(t.Context(), 13, crypto.SHA256)
			require.NoError(t, err)
			verdict, err := p.v.VerifyReport(moduleid.ReportInput{Body: body, Node: node, Nonce: nonce, Bank: crypto.SHA256, PCRs: map[int][]byte{13: value}})
			require.NoError(t, err)
			assert.Len(t, verdict.Admitted(), 1)
			assert.Len(t, verdict.Refused(), 1)
		})
	}
}

// Nobody who holds an identity changes what it says.
func TestIdentityIsImmutable(t *testing.T) {
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	responder, _, err := moduleidtest.NewSPDM(ca, "radio", []byte("firmware"))
	require.NoError(t, err)
	scheme := spdm.Scheme{Measurements: true}
	chip, err := spdm.NewRequester(spdm.Loopback(responder), spdm.Config{Scheme: scheme})
	require.NoError(t, err)
	v := &moduleid.Verifier{Schemes: []moduleid.Scheme{nil, scheme}, Classes: map[string]moduleid.Class{"radio": {Members: ca.Pool()}},
		Connectors: map[string]moduleid.Connector{"bay1": {Classes: []string{"radio"}}}, UnsafeNoRevocations: true}
	c := moduleid.NewChallenge(node, "bay1")
	e, err := chip.Prove(t.Context(), c)
	require.NoError(t, err)
	id, err := v.Verify(c, e)
	require.NoError(t, err)
	want := string(id.Measurements()[0].Value)
	clear(id.Measurements()[0].Value)
	assert.Equal(t, want, string(id.Measurements()[0].Value))
}

// nothing is a scheme that finds nothing and does not say so.
type nothing struct{}

func (nothing) Name() string { return "nothing" }

func (nothing) Check(moduleid.Challenge, *moduleid.Evidence) (*moduleid.Proof, error) {
	return nil, nil
}

// What is nil, or was not made by its constructor, refuses and does not panic.
func TestThreat19NilRefuses(t *testing.T) {
	c := moduleid.NewChallenge(node, "bay1")
	_, err := (&moduleid.Verifier{Schemes: []moduleid.Scheme{nothing{}}}).Verify(c, &moduleid.Evidence{Scheme: "nothing"})
	assert.Equal(t, moduleid.ReasonMalformed, reasonOf(t, err))
	_, err = (*moduleid.Verifier)(nil).Verify(c, &moduleid.Evidence{Scheme: "nothing"})
	require.ErrorIs(t, err, moduleid.ErrRefused)
	_, err = (*moduleid.Verifier)(nil).VerifyReport(moduleid.ReportInput{})
	require.ErrorIs(t, err, moduleid.ErrReport)
	_, err = spdm.NewRequester(nil, spdm.Config{})
	require.Error(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	_, err = moduleid.FromSigner(key, []*x509.Certificate{nil})
	require.Error(t, err)
	var id *moduleid.Identity
	assert.False(t, id.Authenticated())
	assert.False(t, (&moduleid.Identity{}).Authenticated())
	_, err = (*moduleid.Session)(nil).Identity()
	require.ErrorIs(t, err, moduleid.ErrUnproven)
	require.ErrorIs(t, (&moduleid.Session{}).UsePrivileged(t.Context(), nil), moduleid.ErrUnproven)
}
