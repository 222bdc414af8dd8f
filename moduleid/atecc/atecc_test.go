package atecc_test

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

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

// The ATECC508A signs from TempKey, and is below the minimum unless it is
// asked for.
func TestATECC508A(t *testing.T) {
	emulator := certified(t, moduleidtest.DataSheet)
	emulator.Configure(func(z *[128]byte) { z[6], z[7] = 0x50, 0x00 })
	bus := moduleidtest.NewBus(100_000)
	bus.Plug(0x60, emulator)
	host := atecc.NewHost(bus)
	chip, err := host.Chip(atecc.Config{})
	require.NoError(t, err)
	_, err = chip.Prove(t.Context(), moduleid.NewChallenge("node", "bay"))
	require.ErrorIs(t, err, moduleid.ErrRefused)
	require.ErrorContains(t, err, "the chip is an ATECC508A; at least ATECC608A")
	chip, err = host.Chip(atecc.Config{MinRevision: atecc.ATECC508A})
	require.NoError(t, err)
	proves(t, chip)
	proves(t, chip)
}

// WriteConfig is the upper nibble of SlotConfig: its bit 1 (13) lets GenKey
// replace a key, its bit 2 (14) lets PrivWrite bring one from outside.
func TestWriteConfigOfAPrivateKey(t *testing.T) {
	for word, ok := range map[uint16]bool{
		0x2087: true,  // Microchip's standard TLS configuration: GenKey only
		0x0085: true,  // a permanent key
		0x6083: false, // a common development configuration: PrivWrite too
		0x4085: false,
		0x0385: true, // bits 8 to 11 are the write key's slot, and mean nothing without PrivWrite
	} {
		var z atecc.ConfigZone
		z[0], z[1], z[20], z[21], z[96] = 0x01, 0x23, byte(word), byte(word>>8), 0x33
		err := z.Check(0)
		assert.Equal(t, ok, err == nil, "%#04x: %v", word, err)
	}
}

// A chip that answers with a status is there: it is refused, not missing.
func TestChipThatWillNotSign(t *testing.T) {
	for name, change := range map[string]func(*moduleidtest.ATECC608){
		"no certificate":             func(c *moduleidtest.ATECC608) { _ = c.StoreSlot(8, nil) },
		"a slot that can't be read":  func(c *moduleidtest.ATECC608) { c.Configure(func(z *[128]byte) { z[36] |= 0x80 }) },
		"a public key that is shut":  func(c *moduleidtest.ATECC608) { c.Configure(func(z *[128]byte) { z[96] &^= 2 }) },
		"a certificate that is torn": func(c *moduleidtest.ATECC608) { _ = c.StoreSlot(8, []byte{0x30, 0x82, 0xff}) },
	} {
		t.Run(name, func(t *testing.T) {
			emulator := certified(t, moduleidtest.Instant)
			change(emulator)
			bus := moduleidtest.NewBus(0)
			bus.Plug(0x60, emulator)
			chip, err := atecc.NewHost(bus).Chip(atecc.Config{})
			require.NoError(t, err)
			_, err = chip.Prove(t.Context(), moduleid.NewChallenge("node", "bay"))
			require.ErrorIs(t, err, moduleid.ErrRefused)
		})
	}
}

// A server of the word-address framing that is written from its description,
// and sends its answers in two pieces with a pause in between.
func TestTCPServerThatPauses(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	chip := certified(t, moduleidtest.Instant)
	go chip.ServeTCP(t.Context(), l)
	front, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer front.Close()
	var words sync.Map
	go func() {
		for {
			client, err := front.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				return
			}
			go func() {
				defer server.Close()
				for {
					var head [2]byte
					if _, err := io.ReadFull(client, head[:1]); err != nil {
						return
					}
					words.Store(head[0], true)
					out := head[:1]
					if head[0] == 3 {
						if _, err := io.ReadFull(client, head[1:]); err != nil {
							return
						}
						rest := make([]byte, int(head[1])-1)
						if _, err := io.ReadFull(client, rest); err != nil {
							return
						}
						out = append(head[:], rest...)
					}
					_, _ = server.Write(out)
				}
			}()
			go func() {
				defer client.Close()
				for {
					var count [1]byte
					if _, err := io.ReadFull(server, count[:]); err != nil {
						return
					}
					rest := make([]byte, int(count[0])-1)
					if _, err := io.ReadFull(server, rest); err != nil {
						return
					}
					for _, p := range [][]byte{count[:], rest} {
						_, _ = client.Write(p)
						time.Sleep(45 * time.Millisecond)
					}
				}
			}()
		}
	}()
	bus, err := atecc.OpenTCP(t.Context(), front.Addr().String())
	require.NoError(t, err)
	defer bus.Close()
	c, err := atecc.NewHost(bus).Chip(atecc.Config{})
	require.NoError(t, err)
	proves(t, c)
	_, reset := words.Load(byte(0))
	assert.False(t, reset, "answers come by themselves")
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

func TestStrictProofIsOfTheChipsOwnMessage(t *testing.T) {
	ca, err := moduleidtest.NewCA("Strict modules")
	require.NoError(t, err)
	emulator, err := moduleidtest.NewATECC608(moduleidtest.Instant)
	require.NoError(t, err)
	cert, err := ca.Issue("module", emulator.InternalKey(), nil)
	require.NoError(t, err)
	require.NoError(t, emulator.Store(cert))
	bus := moduleidtest.NewBus(0)
	bus.Plug(0x60, emulator)
	host := atecc.NewHost(bus)
	chip, err := host.Chip(atecc.Config{Slot: 1, Strict: true})
	require.NoError(t, err)
	c := moduleid.NewChallenge("node", "bay")
	e, err := chip.Prove(t.Context(), c)
	require.NoError(t, err)
	proof, err := atecc.InternalScheme().Check(c, e)
	require.NoError(t, err)
	assert.False(t, proof.AnyDigest)
	require.Len(t, proof.Measurements, 1)
	assert.Equal(t, []byte{0x01, 0x23}, proof.Measurements[0].Value[:2])

	_, err = atecc.InternalScheme().Check(moduleid.NewChallenge("node", "bay"), e)
	require.Error(t, err, "another challenge")
	for i := range e.Message {
		e.Message[i] ^= 1
		_, err = atecc.InternalScheme().Check(c, e)
		require.Error(t, err, "byte %d of the message", i)
		e.Message[i] ^= 1
	}

	t.Run("the key signs no digest of the host", func(t *testing.T) {
		loose, err := host.Chip(atecc.Config{Slot: 1})
		require.NoError(t, err)
		_, err = loose.Prove(t.Context(), c)
		require.ErrorContains(t, err, "may not sign digests of the host")
	})
	t.Run("a key that signs both is refused", func(t *testing.T) {
		emulator.Configure(func(z *[128]byte) { z[22] |= 1 })
		both, err := host.Chip(atecc.Config{Slot: 1, Strict: true})
		require.NoError(t, err)
		_, err = both.Prove(t.Context(), c)
		require.ErrorIs(t, err, moduleid.ErrRefused)
	})
}

// faults are what a bus and a chip do wrong. Each is survived: the proof holds
// afterwards, or the error is the bus's.
func TestThreat07FaultsOnTheWire(t *testing.T) {
	once := func(f func(tr *moduleidtest.Transfer) error, when func(tr *moduleidtest.Transfer) bool) func(*moduleidtest.Transfer) error {
		done := false
		return func(tr *moduleidtest.Transfer) error {
			if done || !when(tr) {
				return nil
			}
			done = true
			return f(tr)
		}
	}
	isRead := func(tr *moduleidtest.Transfer) bool { return tr.Read && len(tr.Data) > 8 }
	isCommand := func(op byte) func(tr *moduleidtest.Transfer) bool {
		return func(tr *moduleidtest.Transfer) bool { return !tr.Read && len(tr.Data) > 2 && tr.Data[2] == op }
	}
	for name, tc := range map[string]struct {
		fault func(*moduleidtest.Transfer) error
		fails string
	}{
		"bit flip in an answer":         {once(func(tr *moduleidtest.Transfer) error { tr.Data[3] ^= 4; return nil }, isRead), ""},
		"bit flip in a command":         {once(func(tr *moduleidtest.Transfer) error { tr.Data[4] ^= 4; return nil }, isCommand(0x16)), ""},
		"command that got lost":         {once(func(tr *moduleidtest.Transfer) error { tr.Data[0] = 0; return nil }, isCommand(0x41)), ""},
		"chip falls asleep before Sign": {once(func(tr *moduleidtest.Transfer) error { tr.Data[0] = 1; return nil }, isCommand(0x41)), ""},
		"every answer corrupted": {func(tr *moduleidtest.Transfer) error {
			if isRead(tr) {
				tr.Data[3] ^= 4
			}
			return nil
		}, "checksum"},
		"count of 255": {func(tr *moduleidtest.Transfer) error {
			if tr.Read && len(tr.Data) == 1 {
				tr.Data[0] = 255
			}
			return nil
		}, "impossible length"},
		"count of 0": {func(tr *moduleidtest.Transfer) error {
			if tr.Read && len(tr.Data) == 1 {
				tr.Data[0] = 0
			}
			return nil
		}, "impossible length"},
		"lines stuck": {func(*moduleidtest.Transfer) error { return atecc.ErrBus }, "bus failure"},
		"self test failed": {func(tr *moduleidtest.Transfer) error {
			if tr.Read && len(tr.Data) == 4 {
				copy(tr.Data, []byte{4, 7, 0xc4, 0x40})
			}
			return nil
		}, "self test failed"},
	} {
		t.Run(name, func(t *testing.T) {
			bus := moduleidtest.NewBus(0)
			bus.Plug(0x60, certified(t, moduleidtest.Instant))
			bus.OnTransfer(tc.fault)
			chip, err := atecc.NewHost(bus).Chip(atecc.Config{})
			require.NoError(t, err)
			c := moduleid.NewChallenge("node", "bay")
			e, err := chip.Prove(t.Context(), c)
			if tc.fails != "" {
				require.ErrorContains(t, err, tc.fails)
				return
			}
			require.NoError(t, err)
			_, err = atecc.Scheme().Check(c, e)
			require.NoError(t, err)
		})
	}
}

// A swapped answer has a good checksum: only the signature tells.
func TestThreat07AnswerSwappedWithGoodChecksum(t *testing.T) {
	bus := moduleidtest.NewBus(0)
	emulator := certified(t, moduleidtest.Instant)
	bus.Plug(0x60, emulator)
	chip, err := atecc.NewHost(bus).Chip(atecc.Config{})
	require.NoError(t, err)
	var first, last []byte
	bus.OnTransfer(func(tr *moduleidtest.Transfer) error {
		if tr.Read && len(tr.Data) == 66 {
			if last = append([]byte(nil), tr.Data...); first != nil {
				copy(tr.Data, first)
			}
		}
		return nil
	})
	proves(t, chip)
	first = last // the signature of the first proof, played back
	c := moduleid.NewChallenge("node", "bay")
	e, err := chip.Prove(t.Context(), c)
	require.NoError(t, err)
	_, err = atecc.Scheme().Check(c, e)
	require.ErrorContains(t, err, "does not answer this challenge")
}

func TestContextEndsAProofWithinASecond(t *testing.T) {
	bus := moduleidtest.NewBus(0)
	bus.Plug(0x60, certified(t, 100)) // a hundred times slower than the data sheet
	chip, err := atecc.NewHost(bus).Chip(atecc.Config{})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = chip.Prove(ctx, moduleid.NewChallenge("node", "bay"))
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestThreat15GoroutinesShareOneBus(t *testing.T) {
	defer goleak.VerifyNone(t)
	bus := moduleidtest.NewBus(0)
	host := atecc.NewHost(bus)
	var wg sync.WaitGroup
	for i := range 8 {
		addr := uint8(0x60 + i%4)
		if i < 4 {
			bus.Plug(addr, certified(t, 0.05))
		}
		chip, err := host.Chip(atecc.Config{Address: addr})
		require.NoError(t, err)
		for range 2 {
			wg.Go(func() {
				c := moduleid.NewChallenge("node", "bay")
				e, err := chip.Prove(context.Background(), c)
				if assert.NoError(t, err) {
					_, err = atecc.Scheme().Check(c, e)
					assert.NoError(t, err)
				}
			})
		}
	}
	wg.Wait()
}
