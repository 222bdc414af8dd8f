package moduleid_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
	"github.com/trusttree/trusttree/moduleid/revocation"
)

func TestThreat16ClockNotSet(t *testing.T) {
	p := newPole(t, "bay1")
	p.v.Now = func() time.Time { return time.Unix(0, 0) }
	c := moduleid.NewChallenge(node, "bay1")
	e, err := p.chip(t, 0x60).Prove(t.Context(), c)
	require.NoError(t, err)
	_, err = p.v.Verify(c, e)
	assert.Equal(t, moduleid.ReasonExpired, reasonOf(t, err), "without a floor, 1970 is before every certificate")
	p.v.ClockFloor = time.Now().Add(-time.Minute)
	_, err = p.v.Verify(c, e)
	assert.Equal(t, moduleid.ReasonClock, reasonOf(t, err))
	p.v.AllowUnsetClock = true
	id, err := p.v.Verify(c, e)
	require.NoError(t, err)
	assert.Equal(t, p.v.ClockFloor, id.VerifiedAt())
	p.v.ClockFloor = time.Now().AddDate(30, 0, 0)
	_, err = p.v.Verify(c, e)
	assert.Equal(t, moduleid.ReasonExpired, reasonOf(t, err), "the floor does not revive what expired")
}

func TestThreat16RevocationListMovesTheFloor(t *testing.T) {
	p := newPole(t, "bay1")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	rev, err := revocation.New(revocation.Config{Keys: []crypto.PublicKey{key.Public()}})
	require.NoError(t, err)
	signed, err := revocation.Sign(revocation.List{Sequence: 1, Issued: time.Now().Add(time.Hour)}, key)
	require.NoError(t, err)
	require.NoError(t, rev.Update(signed))
	p.v.Revocations, p.v.UnsafeNoRevocations = rev, false
	_, err = p.inventory(t).Bay("bay1").Admit(t.Context())
	assert.Equal(t, moduleid.ReasonClock, reasonOf(t, err), "a clock set back keeps no old list fresh")
}

func TestThreat17MalformedCertificates(t *testing.T) {
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	for name, tc := range map[string]struct {
		change func(*x509.Certificate)
		want   moduleid.Reason
	}{
		"CA:TRUE leaf":               {func(c *x509.Certificate) { c.IsCA = true }, moduleid.ReasonCertificate},
		"no basic constraints":       {func(c *x509.Certificate) { c.BasicConstraintsValid = false }, moduleid.ReasonCertificate},
		"no signing usage":           {func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }, moduleid.ReasonCertificate},
		"SPDM requester":             {func(c *x509.Certificate) { c.UnknownExtKeyUsage = oids("1.3.6.1.4.1.412.274.4") }, moduleid.ReasonCertificate},
		"expired":                    {func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, moduleid.ReasonExpired},
		"not yet valid":              {func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }, moduleid.ReasonExpired},
		"critical unknown extension": {func(c *x509.Certificate) { c.ExtraExtensions = criticalExtension() }, moduleid.ReasonCertificate},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, tc.want, reasonOf(t, verifyLeaf(t, ca, tc.change)))
		})
	}
	t.Run("RSA of 1024 bits", func(t *testing.T) {
		t.Setenv("GODEBUG", "rsa1024min=0")
		key, err := rsa.GenerateKey(rand.Reader, 1024)
		require.NoError(t, err)
		cert, err := ca.Issue("small", key.Public(), nil)
		require.NoError(t, err)
		assert.Equal(t, moduleid.ReasonCertificate, reasonOf(t, verifySigner(t, ca.Pool(), key, cert)))
	})
	t.Run("P-224", func(t *testing.T) {
		key, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
		require.NoError(t, err)
		cert, err := ca.Issue("small", key.Public(), nil)
		require.NoError(t, err)
		assert.Equal(t, moduleid.ReasonCertificate, reasonOf(t, verifySigner(t, ca.Pool(), key, cert)))
	})
	t.Run("issued by a leaf", func(t *testing.T) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		leaf, err := ca.Issue("leaf", key.Public(), nil)
		require.NoError(t, err)
		victim, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, leaf, victim.Public(), key)
		require.NoError(t, err)
		forged, err := x509.ParseCertificate(der)
		require.NoError(t, err)
		assert.Contains(t, []moduleid.Reason{moduleid.ReasonCertificate, moduleid.ReasonUntrusted}, reasonOf(t, verifySigner(t, ca.Pool(), victim, forged, leaf)))
	})
	for name, chain := range map[string][][]byte{
		"no certificate": nil, "not DER": {{1, 2, 3}}, "more than ten": make([][]byte, 11), "more than 64 KiB": {make([]byte, 65<<10)},
	} {
		t.Run(name, func(t *testing.T) {
			v := &moduleid.Verifier{Schemes: []moduleid.Scheme{moduleid.SignerScheme()}}
			_, err := v.Verify(moduleid.NewChallenge(node, "bay1"), &moduleid.Evidence{Scheme: "signer.v1", Chain: chain})
			assert.Equal(t, moduleid.ReasonMalformed, reasonOf(t, err))
		})
	}
}

func TestThreat19ZeroValuesDeny(t *testing.T) {
	var id moduleid.Identity
	assert.False(t, id.Authenticated())
	assert.False(t, (*moduleid.Identity)(nil).Authenticated())
	var s moduleid.Session
	_, err := s.Identity()
	require.ErrorIs(t, err, moduleid.ErrUnproven)
	require.ErrorIs(t, s.Use(t.Context(), nil), moduleid.ErrUnproven)
	require.ErrorIs(t, s.UsePrivileged(t.Context(), nil), moduleid.ErrUnproven)

	p := newPole(t, "bay1")
	c := moduleid.NewChallenge(node, "bay1")
	e, err := p.chip(t, 0x60).Prove(t.Context(), c)
	require.NoError(t, err)
	_, err = new(moduleid.Verifier).Verify(c, e)
	assert.Equal(t, moduleid.ReasonScheme, reasonOf(t, err))
	_, err = p.v.Verify(c, nil)
	assert.Equal(t, moduleid.ReasonMalformed, reasonOf(t, err))
	_, err = p.v.Verify(moduleid.Challenge{}, e)
	assert.Equal(t, moduleid.ReasonMalformed, reasonOf(t, err))
	p.v.Connectors = nil
	_, err = p.v.Verify(c, e)
	assert.Equal(t, moduleid.ReasonClass, reasonOf(t, err))
	p.v.UnsafeNoRevocations = false
	_, err = p.v.Verify(c, e)
	assert.Equal(t, moduleid.ReasonStaleList, reasonOf(t, err))
	_, err = new(moduleid.Verifier).VerifyReport(moduleid.ReportInput{})
	require.ErrorIs(t, err, moduleid.ErrReport)
}
