package atecc_test

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/atecc"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
)

// certified returns an emulated chip with a certificate in slot 8.
func certified(t testing.TB, timing moduleidtest.Timing) *moduleidtest.ATECC608 {
	t.Helper()
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	chip, err := moduleidtest.NewATECC608(timing)
	require.NoError(t, err)
	cert, err := ca.Issue("module", chip.PublicKey(), nil)
	require.NoError(t, err)
	require.NoError(t, chip.Store(cert))
	return chip
}

func proves(t testing.TB, chip *atecc.Chip) {
	t.Helper()
	c := moduleid.NewChallenge("node", "bay")
	e, err := chip.Prove(t.Context(), c)
	require.NoError(t, err)
	_, err = atecc.Scheme().Check(c, e)
	require.NoError(t, err)
}

func TestProofAtDataSheetTiming(t *testing.T) {
	bus := moduleidtest.NewBus(100_000)
	bus.Plug(0x60, certified(t, moduleidtest.DataSheet))
	chip, err := atecc.NewHost(bus).Chip(atecc.Config{})
	require.NoError(t, err)
	proves(t, chip)
	proves(t, chip)
}

func TestProofOverTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	chip := certified(t, moduleidtest.DataSheet)
	go chip.ServeTCP(t.Context(), l)
	bus, err := atecc.OpenTCP(t.Context(), l.Addr().String())
	require.NoError(t, err)
	defer bus.Close()
	c, err := atecc.NewHost(bus).Chip(atecc.Config{})
	require.NoError(t, err)
	proves(t, c)
	time.Sleep(1400 * time.Millisecond) // the emulated watchdog puts it to sleep in between
	proves(t, c)
}

func TestUnlockedPartIsRefused(t *testing.T) {
	bus := moduleidtest.NewBus(0)
	emulator := certified(t, moduleidtest.Instant)
	emulator.Configure(func(z *[128]byte) { z[86], z[87] = 0x55, 0x55 })
	bus.Plug(0x60, emulator)
	chip, err := atecc.NewHost(bus).Chip(atecc.Config{})
	require.NoError(t, err)
	_, err = chip.Prove(t.Context(), moduleid.NewChallenge("node", "bay"))
	require.ErrorIs(t, err, moduleid.ErrRefused)
	assert.ErrorContains(t, err, "development part")
}

func TestMicrochipAddressIsExplained(t *testing.T) {
	_, err := atecc.NewHost(moduleidtest.NewBus(0)).Chip(atecc.Config{Address: 0xc0})
	assert.ErrorContains(t, err, "0x60")
}
