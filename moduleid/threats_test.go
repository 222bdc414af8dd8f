package moduleid_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/atecc"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
	"github.com/trusttree/trusttree/moduleid/revocation"
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

func TestThreat09SwapBetweenCheckAndUse(t *testing.T) {
	p := newPole(t, "bay1")
	other := newChip(t, p.ca, "another camera")
	p.register(other.cert, "camera")
	inv := p.inventory(t)
	bay := inv.Bay("bay1")
	use := func(s *moduleid.Session, during func()) error {
		return s.Use(t.Context(), func(_ context.Context, id *moduleid.Identity) error {
			assert.True(t, id.Authenticated())
			during()
			return nil
		})
	}
	s, err := bay.Admit(t.Context())
	require.NoError(t, err)
	require.NoError(t, use(s, func() {}))

	t.Run("removal before use", func(t *testing.T) {
		require.NoError(t, bay.Removed(t.Context()))
		assert.ErrorIs(t, use(s, func() { t.Error("used an unproven module") }), moduleid.ErrUnproven)
	})
	t.Run("removal during use flags the data", func(t *testing.T) {
		s, err := bay.Admit(t.Context())
		require.NoError(t, err)
		assert.ErrorIs(t, use(s, func() { require.NoError(t, bay.Removed(t.Context())) }), moduleid.ErrUnproven)
	})
	t.Run("another module of the owner without a removal event", func(t *testing.T) {
		s, err := bay.Admit(t.Context())
		require.NoError(t, err)
		assert.ErrorIs(t, use(s, func() {
			p.bus.Plug(0x60, other.emulator)
			// The open chip still has the first one's certificate, so the swap
			// is refused; asked again, the other one is admitted as itself.
			_, err := bay.Admit(t.Context())
			assert.Equal(t, moduleid.ReasonProof, reasonOf(t, err))
			_, err = bay.Admit(t.Context())
			require.NoError(t, err)
		}), moduleid.ErrUnproven)
		assert.Equal(t, moduleid.ID(other.cert), bay.Entry().ID)
		p.bus.Plug(0x60, p.chips["bay1"])
		require.NoError(t, bay.Removed(t.Context()))
	})
	t.Run("a swap unseen by any event is seen by a privileged use", func(t *testing.T) {
		s, err := bay.Admit(t.Context())
		require.NoError(t, err)
		p.bus.Plug(0x60, other.emulator)
		err = s.UsePrivileged(t.Context(), func(context.Context, *moduleid.Identity) error {
			t.Error("used an unproven module")
			return nil
		})
		assert.ErrorIs(t, err, moduleid.ErrUnproven)
		p.bus.Plug(0x60, p.chips["bay1"])
		s, err = bay.Admit(t.Context())
		require.NoError(t, err)
		err = s.UsePrivileged(t.Context(), func(context.Context, *moduleid.Identity) error {
			p.bus.Plug(0x60, other.emulator)
			return nil
		})
		assert.ErrorIs(t, err, moduleid.ErrUnproven)
	})
}

func TestThreat09LeaseEnds(t *testing.T) {
	p := newPole(t, "bay1")
	now := time.Now()
	p.bays[0].Lease = time.Minute
	inv, err := moduleid.NewInventory(moduleid.InventoryConfig{Node: node, Verifier: p.v, Bays: p.bays, Now: func() time.Time { return now }})
	require.NoError(t, err)
	s, err := inv.Bay("bay1").Admit(t.Context())
	require.NoError(t, err)
	now = now.Add(59 * time.Second)
	_, err = s.Identity()
	require.NoError(t, err)
	_, err = inv.Bay("bay1").Admit(t.Context())
	require.NoError(t, err, "a proof in between renews the lease of the same session")
	now = now.Add(59 * time.Second)
	_, err = s.Identity()
	require.NoError(t, err)
	now = now.Add(time.Second)
	_, err = s.Identity()
	require.ErrorIs(t, err, moduleid.ErrUnproven)
}

func TestThreat10RevokedModule(t *testing.T) {
	p := newPole(t, "bay1", "bay2")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	now := time.Now()
	rev, err := revocation.New(revocation.Config{Keys: []crypto.PublicKey{key.Public()}, MaxAge: 24 * time.Hour})
	require.NoError(t, err)
	p.v.Revocations, p.v.UnsafeNoRevocations = rev, false
	p.v.Now = func() time.Time { return now }
	inv := p.inventory(t)
	bay := inv.Bay("bay1")

	_, err = bay.Admit(t.Context())
	assert.Equal(t, moduleid.ReasonStaleList, reasonOf(t, err), "no list yet")
	update := func(l revocation.List) error {
		signed, err := revocation.Sign(l, key)
		require.NoError(t, err)
		return rev.Update(signed)
	}
	require.NoError(t, update(revocation.List{Sequence: 1, Issued: now}))
	s, err := bay.Admit(t.Context())
	require.NoError(t, err)
	require.NoError(t, update(revocation.List{Sequence: 2, Issued: now, IDs: []string{moduleid.ID(p.certs["bay1"])}}))
	_, err = bay.Admit(t.Context())
	assert.Equal(t, moduleid.ReasonRevoked, reasonOf(t, err), "at the next proof")
	_, err = s.Identity()
	require.ErrorIs(t, err, moduleid.ErrUnproven, "its session ended with it")
	require.NoError(t, bay.Removed(t.Context()))
	_, err = bay.Admit(t.Context())
	assert.Equal(t, moduleid.ReasonRevoked, reasonOf(t, err), "put in again")
	require.ErrorIs(t, update(revocation.List{Sequence: 1, Issued: now}), revocation.ErrRollback)
	_, err = bay.Admit(t.Context())
	assert.Equal(t, moduleid.ReasonRevoked, reasonOf(t, err), "after an old list was played back")
	_, err = inv.Bay("bay2").Admit(t.Context())
	require.NoError(t, err, "the neighbour is not concerned")

	t.Run("by serial number of its CA", func(t *testing.T) {
		require.NoError(t, update(revocation.List{Sequence: 3, Issued: now, Serials: []revocation.Serial{{IssuerID: moduleid.ID(p.ca.Certificate), Serial: "0x" + p.certs["bay2"].SerialNumber.Text(16)}}}))
		_, err = inv.Bay("bay2").Admit(t.Context())
		assert.Equal(t, moduleid.ReasonRevoked, reasonOf(t, err))
	})
	t.Run("with its CA", func(t *testing.T) {
		require.NoError(t, update(revocation.List{Sequence: 4, Issued: now, IDs: []string{moduleid.ID(p.ca.Certificate)}}))
		_, err = inv.Bay("bay2").Admit(t.Context())
		assert.Equal(t, moduleid.ReasonRevoked, reasonOf(t, err))
	})
	t.Run("a list held back for too long refuses everybody", func(t *testing.T) {
		require.NoError(t, update(revocation.List{Sequence: 5, Issued: now}))
		_, err = inv.Bay("bay2").Admit(t.Context())
		require.NoError(t, err)
		now = now.Add(25 * time.Hour)
		_, err = inv.Bay("bay2").Admit(t.Context())
		assert.Equal(t, moduleid.ReasonStaleList, reasonOf(t, err))
	})
}

func TestThreat11SameIdentityInTwoConnectors(t *testing.T) {
	p := newPole(t, "bay1", "bay2")
	p.bus.Plug(0x61, p.chips["bay1"].Clone()) // a chip opened in a laboratory
	inv := p.inventory(t)
	snap, err := inv.AdmitAll(t.Context())
	require.ErrorIs(t, err, moduleid.ErrRefused)
	for _, e := range snap {
		assert.Equal(t, moduleid.ReasonDuplicate, e.Reason, "nobody can tell which one is genuine")
	}
	_, err = inv.Bay("bay1").Admit(t.Context())
	assert.Equal(t, moduleid.ReasonDuplicate, reasonOf(t, err), "asking again does not help")

	p.bus.Unplug(0x61)
	_, err = inv.Bay("bay2").Admit(t.Context())
	require.Error(t, err)
	require.NoError(t, inv.Bay("bay2").Removed(t.Context()))
	_, err = inv.Bay("bay1").Admit(t.Context())
	require.NoError(t, err, "once one of them is gone")
}

func TestThreat12ChipBelowTheMinimum(t *testing.T) {
	p := newPole(t, "bay1")
	p.chips["bay1"].Configure(func(z *[128]byte) { z[6], z[7] = 0x50, 0x00 })
	_, err := p.chip(t, 0x60).Prove(t.Context(), moduleid.NewChallenge(node, "bay1"))
	assert.Equal(t, moduleid.ReasonModel, reasonOf(t, err))

	// What the chip says is no proof: the registry decides.
	p = newPole(t, "bay1")
	p.v.Classes["camera"] = moduleid.Class{Models: []string{"ATECC608B"}}
	c := moduleid.NewChallenge(node, "bay1")
	e, err := p.chip(t, 0x60).Prove(t.Context(), c)
	require.NoError(t, err)
	_, err = p.v.Verify(c, e)
	assert.Equal(t, moduleid.ReasonModel, reasonOf(t, err))
	p.v.Registry = moduleid.Records{moduleid.ID(p.certs["bay1"]): {Class: "camera", Model: "ATECC608B"}}
	id, err := p.v.Verify(c, e)
	require.NoError(t, err)
	assert.Equal(t, "ATECC608B", id.Model())
}

func TestThreat13UnlockedDevelopmentPart(t *testing.T) {
	for name, change := range map[string]func(*[128]byte){
		"configuration zone open": func(z *[128]byte) { z[87] = 0x55 },
		"data zone open":          func(z *[128]byte) { z[86] = 0x55 },
		"key slot not secret":     func(z *[128]byte) { z[20] &^= 0x80 },
		"key may be written":      func(z *[128]byte) { z[21] |= 0x40 },
		"no private key":          func(z *[128]byte) { z[96] &^= 1 },
		"no P-256 key":            func(z *[128]byte) { z[96] = 0x3f },
		"signs no digests":        func(z *[128]byte) { z[20] &^= 1 },
		"no serial number":        func(z *[128]byte) { z[0] = 0xff },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPole(t, "bay1")
			p.chips["bay1"].Configure(change)
			_, err := p.inventory(t).Bay("bay1").Admit(t.Context())
			assert.Contains(t, []moduleid.Reason{moduleid.ReasonModel, moduleid.ReasonSilent}, reasonOf(t, err))
		})
	}
}

func TestThreat14OneSilentModuleDelaysNobody(t *testing.T) {
	p := newPole(t, "bay1", "bay2", "bay3")
	p.bays[1].Timeout = 300 * time.Millisecond
	p.bays[1].Open = func(context.Context) (moduleid.Chip, error) { return deadChip{}, nil }
	snap, err := p.inventory(t).AdmitAll(t.Context())
	assert.Equal(t, moduleid.ReasonSilent, reasonOf(t, err))
	assert.True(t, snap[0].Admitted())
	assert.True(t, snap[1].Refused())
	assert.True(t, snap[2].Admitted())
}

func TestThreat14ModuleThatComesAndGoesForEver(t *testing.T) {
	p := newPole(t, "bay1", "bay2")
	p.bays[1].Open = func(context.Context) (moduleid.Chip, error) { return nil, errors.New("loose contact") }
	inv := p.inventory(t)
	_, err := inv.Bay("bay1").Admit(t.Context())
	require.NoError(t, err)
	flaky := inv.Bay("bay2")
	for range 600 {
		_, err = flaky.Admit(t.Context())
		require.Error(t, err)
		require.NoError(t, flaky.Removed(t.Context()))
	}
	assert.Equal(t, moduleid.ReasonUnstable, reasonOf(t, err))
	assert.Equal(t, moduleid.ReasonUnstable, flaky.Entry().Reason)
	require.NoError(t, inv.Bay("bay1").Removed(t.Context()))
	_, err = inv.Bay("bay1").Admit(t.Context())
	require.NoError(t, err, "the other connector's changes still fit the log")
	_, body, err := inv.Collect(t.Context(), make([]byte, 32))
	require.NoError(t, err)
	_, err = p.v.VerifyReport(moduleid.ReportInput{Body: body, Node: node, Nonce: make([]byte, 32), Bank: crypto.SHA256, PCRs: map[int][]byte{13: p.pcrs.values[crypto.SHA256][13]}})
	require.NoError(t, err)
}

// deadChip never answers and ignores its context for a while.
type deadChip struct{}

func (deadChip) Prove(context.Context, moduleid.Challenge) (*moduleid.Evidence, error) {
	time.Sleep(time.Second)
	return nil, errors.New("late")
}
func (deadChip) Close() error { return nil }

func TestThreat14StuckBusIsNamedAndIsNoAbsence(t *testing.T) {
	p := newPole(t, "bay1")
	bay := p.inventory(t).Bay("bay1")
	p.bus.OnTransfer(func(*moduleidtest.Transfer) error { return atecc.ErrBus })
	_, err := bay.Admit(t.Context())
	assert.Equal(t, moduleid.ReasonSilent, reasonOf(t, err))
	p.bus.OnTransfer(nil)
	p.bus.Unplug(0x60)
	_, err = bay.Admit(t.Context())
	require.ErrorIs(t, err, moduleid.ErrAbsent)
	assert.ErrorContains(t, err, "0x60")
}

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
