package moduleid_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/atecc"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
	"github.com/trusttree/trusttree/moduleid/revocation"
)

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
