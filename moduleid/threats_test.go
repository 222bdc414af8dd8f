package moduleid_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/atecc"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
)

// The tests here are the package's threat model: one attack each.

func (p *pole) chip(t testing.TB, addr uint8) moduleid.Chip {
	t.Helper()
	c, err := p.host.Chip(atecc.Config{Address: addr})
	require.NoError(t, err)
	return c
}

func TestThreat01ReplayedAnswerIsRefused(t *testing.T) {
	p := newPole(t, "bay1")
	old := moduleid.NewChallenge(node, "bay1")
	e, err := p.chip(t, 0x60).Prove(t.Context(), old)
	require.NoError(t, err)
	_, err = p.v.Verify(old, e)
	require.NoError(t, err)
	_, err = p.v.Verify(moduleid.NewChallenge(node, "bay1"), e)
	assert.Equal(t, moduleid.ReasonProof, reasonOf(t, err))
}

func TestThreat02ClonedCertificateIsRefused(t *testing.T) {
	p := newPole(t, "bay1")
	clone, err := moduleidtest.NewATECC608(moduleidtest.Instant)
	require.NoError(t, err)
	clone.CopyCertificates(p.chips["bay1"])
	p.bus.Plug(0x60, clone)
	_, err = p.chip(t, 0x60).Prove(t.Context(), moduleid.NewChallenge(node, "bay1"))
	assert.Equal(t, moduleid.ReasonProof, reasonOf(t, err))

	// The same clone behind a driver that does not look: the signature tells.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	c := moduleid.NewChallenge(node, "bay1")
	digest := c.Digest()
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	require.NoError(t, err)
	sig := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	_, err = p.v.Verify(c, &moduleid.Evidence{Scheme: atecc.SchemeExternal, Chain: [][]byte{p.certs["bay1"].Raw}, Signature: sig})
	assert.Equal(t, moduleid.ReasonProof, reasonOf(t, err))
}

func TestThreat03VendorRootIsNoMembership(t *testing.T) {
	p := newPole(t, "bay1")
	p.v.Registry = moduleid.Records{} // the same vendor's chip, sold to somebody else
	c := moduleid.NewChallenge(node, "bay1")
	e, err := p.chip(t, 0x60).Prove(t.Context(), c)
	require.NoError(t, err)
	_, err = p.v.Verify(c, e)
	assert.Equal(t, moduleid.ReasonForeign, reasonOf(t, err))

	t.Run("a CA of the owner is", func(t *testing.T) {
		v := *p.v
		v.Roots, v.Classes = nil, map[string]moduleid.Class{"camera": {Members: p.ca.Pool()}}
		id, err := v.Verify(c, e)
		require.NoError(t, err)
		assert.Equal(t, "camera", id.Class())
	})
	t.Run("a registered module of an unknown root is refused", func(t *testing.T) {
		v := *p.v
		stranger, err := moduleidtest.NewCA("Stranger")
		require.NoError(t, err)
		v.Roots = stranger.Pool()
		v.Registry = moduleid.Records{moduleid.ID(p.certs["bay1"]): {Class: "camera"}}
		_, err = v.Verify(c, e)
		assert.Equal(t, moduleid.ReasonUntrusted, reasonOf(t, err))
	})
	t.Run("the wrong class of module for the connector", func(t *testing.T) {
		v := *p.v
		v.Registry = moduleid.Records{moduleid.ID(p.certs["bay1"]): {Class: "radio"}}
		v.Classes = map[string]moduleid.Class{"camera": {}, "radio": {}}
		_, err := v.Verify(c, e)
		assert.Equal(t, moduleid.ReasonClass, reasonOf(t, err))
	})
	t.Run("a registry that does not answer", func(t *testing.T) {
		v := *p.v
		v.Registry = brokenRegistry{}
		_, err := v.Verify(c, e)
		assert.Equal(t, moduleid.ReasonForeign, reasonOf(t, err))
	})
	t.Run("registered for another node or connector", func(t *testing.T) {
		v := *p.v
		id := moduleid.ID(p.certs["bay1"])
		v.Registry = moduleid.Records{id: {Class: "camera", Node: "node-8"}}
		_, err := v.Verify(c, e)
		assert.Equal(t, moduleid.ReasonClass, reasonOf(t, err))
		v.Registry = moduleid.Records{id: {Class: "camera", Connectors: []string{"bay9"}}}
		_, err = v.Verify(c, e)
		assert.Equal(t, moduleid.ReasonClass, reasonOf(t, err))
	})
}

type brokenRegistry struct{}

func (brokenRegistry) Module(string) (moduleid.Record, bool, error) {
	return moduleid.Record{}, true, errors.New("database is down")
}

func TestThreat04RecordedAnswerOfAnotherPlaceIsRefused(t *testing.T) {
	p := newPole(t, "bay1", "bay2")
	c := moduleid.NewChallenge("node-8", "bay1")
	e, err := p.chip(t, 0x60).Prove(t.Context(), c)
	require.NoError(t, err)
	for name, here := range map[string]moduleid.Challenge{
		"another node":      {Nonce: c.Nonce, Node: node, Connector: "bay1"},
		"another connector": {Nonce: c.Nonce, Node: "node-8", Connector: "bay2"},
		"another context":   {Nonce: c.Nonce, Node: "node-8", Connector: "bay1", Context: []byte("x")},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := p.v.Verify(here, e)
			assert.Equal(t, moduleid.ReasonProof, reasonOf(t, err))
		})
	}
}

func TestThreat04AnswerAfterTheDeadlineIsRefused(t *testing.T) {
	p := newPole(t, "bay1")
	open := p.bays[0].Open
	p.bays[0].Timeout = 200 * time.Millisecond
	p.bays[0].Open = func(ctx context.Context) (moduleid.Chip, error) {
		c, err := open(ctx)
		return slowChip{c}, err
	}
	_, err := p.inventory(t).Bay("bay1").Admit(t.Context())
	assert.Equal(t, moduleid.ReasonSilent, reasonOf(t, err))
}

// slowChip answers after the deadline and does not care about its context.
type slowChip struct{ moduleid.Chip }

func (s slowChip) Prove(ctx context.Context, c moduleid.Challenge) (*moduleid.Evidence, error) {
	e, err := s.Chip.Prove(context.WithoutCancel(ctx), c)
	time.Sleep(400 * time.Millisecond)
	return e, err
}

func TestThreat05FieldsOfTheDigestDoNotSlide(t *testing.T) {
	seen := map[[32]byte]bool{}
	base := moduleid.Challenge{Nonce: [32]byte{1}, Node: "ab", Connector: "c"}
	for _, c := range []moduleid.Challenge{base,
		{Nonce: base.Nonce, Node: "a", Connector: "bc"},
		{Nonce: base.Nonce, Node: "abc"},
		{Nonce: base.Nonce, Node: "ab", Context: []byte("c")},
		{Nonce: base.Nonce, Node: "ab", Connector: "c", Context: []byte{0}},
		{Nonce: [32]byte{2}, Node: "ab", Connector: "c"},
	} {
		assert.False(t, seen[c.Digest()])
		seen[c.Digest()] = true
	}
}

func TestThreat05TLSKeyIsNoModuleKey(t *testing.T) {
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	for name, usage := range map[string]x509.ExtKeyUsage{"client": x509.ExtKeyUsageClientAuth, "server": x509.ExtKeyUsageServerAuth, "any": x509.ExtKeyUsageAny} {
		t.Run(name, func(t *testing.T) {
			err := verifyLeaf(t, ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{usage} })
			assert.Equal(t, moduleid.ReasonCertificate, reasonOf(t, err))
		})
	}
}

// verifyLeaf lets a signer with a leaf as change makes it prove itself.
func verifyLeaf(t *testing.T, ca *moduleidtest.CA, change func(*x509.Certificate)) error {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	cert, err := ca.Issue("signer", key.Public(), change)
	require.NoError(t, err)
	return verifySigner(t, ca.Pool(), key, cert)
}

func verifySigner(t *testing.T, roots *x509.CertPool, key crypto.Signer, chain ...*x509.Certificate) error {
	t.Helper()
	chip, err := moduleid.FromSigner(key, chain)
	require.NoError(t, err)
	c := moduleid.NewChallenge(node, "bay1")
	e, err := chip.Prove(t.Context(), c)
	require.NoError(t, err)
	v := &moduleid.Verifier{Schemes: []moduleid.Scheme{moduleid.SignerScheme()},
		Classes:             map[string]moduleid.Class{"any": {Members: roots}},
		Connectors:          map[string]moduleid.Connector{"bay1": {Classes: []string{"any"}}},
		UnsafeNoRevocations: true}
	_, err = v.Verify(c, e)
	return err
}

func TestThreat06NothingIsVerifiedOnTheChip(t *testing.T) {
	p := newPole(t, "bay1")
	var ops []byte
	p.bus.OnTransfer(func(tr *moduleidtest.Transfer) error {
		if !tr.Read && len(tr.Data) > 2 {
			ops = append(ops, tr.Data[2])
		}
		return nil
	})
	_, err := p.chip(t, 0x60).Prove(t.Context(), moduleid.NewChallenge(node, "bay1"))
	require.NoError(t, err)
	assert.NotEmpty(t, ops)
	assert.NotContains(t, ops, byte(0x45), "Verify")
	assert.NotContains(t, ops, byte(0x28), "CheckMac")
}
