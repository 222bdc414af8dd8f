package hotplug

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/atecc"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is an inventory with one connector.
func bench(t *testing.T) (*moduleid.Inventory, *moduleidtest.Bus, *moduleidtest.ATECC608) {
	t.Helper()
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	chip, err := moduleidtest.NewATECC608(moduleidtest.Instant)
	require.NoError(t, err)
	cert, err := ca.Issue("camera", chip.PublicKey(), nil)
	require.NoError(t, err)
	require.NoError(t, chip.Store(cert))
	bus := moduleidtest.NewBus(0)
	host := atecc.NewHost(bus)
	inv, err := moduleid.NewInventory(moduleid.InventoryConfig{Node: "node",
		Verifier: &moduleid.Verifier{Schemes: []moduleid.Scheme{atecc.Scheme()}, UnsafeNoRevocations: true,
			Classes:    map[string]moduleid.Class{"camera": {Members: ca.Pool()}},
			Connectors: map[string]moduleid.Connector{"bay": {Classes: []string{"camera"}}}},
		Bays: []moduleid.BayConfig{{Connector: "bay", Open: func(context.Context) (moduleid.Chip, error) { return host.Chip(atecc.Config{}) }}}})
	require.NoError(t, err)
	return inv, bus, chip
}

func TestPolledModuleComesAndGoes(t *testing.T) {
	inv, bus, chip := bench(t)
	var present atomic.Bool
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, inv, Config{Settle: 5 * time.Millisecond}, Poll{Connector: "bay", Interval: 5 * time.Millisecond,
			Present: func(context.Context) (bool, error) { return present.Load(), nil }})
	}()
	admitted := func() bool { return inv.Bay("bay").Entry().Admitted() }
	for range 3 {
		bus.Plug(0x60, chip)
		present.Store(true)
		require.Eventually(t, admitted, 10*time.Second, 5*time.Millisecond)
		bus.Unplug(0x60)
		present.Store(false)
		require.Eventually(t, func() bool { return !admitted() }, 10*time.Second, 5*time.Millisecond)
	}
	cancel()
	require.NoError(t, <-done)
}

// lossy emits what it is told to.
type lossy struct {
	events []Event
	err    error
}

func (l lossy) Watch(ctx context.Context, emit func(Event)) error {
	for _, e := range l.events {
		emit(e)
	}
	if l.err != nil {
		return l.err
	}
	<-ctx.Done()
	return nil
}

func TestLostEventsAskEveryConnectorAgain(t *testing.T) {
	inv, bus, chip := bench(t)
	bus.Plug(0x60, chip)
	s, err := inv.Bay("bay").Admit(t.Context())
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, inv, Config{Settle: time.Millisecond}, lossy{events: []Event{{}}}) }()
	require.Eventually(t, func() bool { _, err := s.Identity(); return errors.Is(err, moduleid.ErrUnproven) }, 10*time.Second, time.Millisecond)
	require.Eventually(t, func() bool { return inv.Bay("bay").Entry().Admitted() }, 10*time.Second, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
}

func TestLeasesAreRenewed(t *testing.T) {
	inv, bus, chip := bench(t)
	bus.Plug(0x60, chip)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, inv, Config{Renew: 20 * time.Millisecond}) }()
	require.Eventually(t, func() bool { return inv.Bay("bay").Entry().Admitted() }, 10*time.Second, time.Millisecond)
	wakes := bus.Stats().Wakes
	require.Eventually(t, func() bool { return bus.Stats().Wakes > wakes+2 }, 10*time.Second, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
}

func TestSourceThatFailsEndsTheRun(t *testing.T) {
	inv, _, _ := bench(t)
	err := Run(t.Context(), inv, Config{}, lossy{err: errors.New("no such line")}, lossy{})
	require.ErrorContains(t, err, "no such line")
}

func TestGPIOOfNoChip(t *testing.T) {
	err := GPIO{Connector: "bay", Chip: filepath.Join(t.TempDir(), "gpiochip")}.Watch(t.Context(), nil)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestLineEvents(t *testing.T) {
	p := make([]byte, 2*lineEventSize+7)
	binary.NativeEndian.PutUint32(p[8:], risingEdge)
	binary.NativeEndian.PutUint32(p[20:], 1)
	binary.NativeEndian.PutUint32(p[lineEventSize+8:], fallingEdge)
	binary.NativeEndian.PutUint32(p[lineEventSize+20:], 4)
	assert.Equal(t, []lineEvent{{risingEdge, 1}, {fallingEdge, 4}}, parseLineEvents(p))
}

func uevent(s string) []byte { return []byte(strings.ReplaceAll(s, "|", "\x00")) }

func TestUeventTranslation(t *testing.T) {
	u := Uevents{Match: func(d map[string]string) (string, bool) { return "bay", d["SUBSYSTEM"] == "usb" }}
	for _, tc := range []struct {
		in   string
		want *Event
	}{
		{"add@/devices/x|ACTION=add|DEVPATH=/devices/x|SUBSYSTEM=usb|SEQNUM=1|", &Event{"bay", true}},
		{"remove@/devices/x|ACTION=remove|DEVPATH=/devices/x|SUBSYSTEM=usb|", &Event{"bay", false}},
		{"add@/devices/x|ACTION=add|DEVPATH=/devices/x|SUBSYSTEM=net|", nil},
		{"add@/devices/x|ACTION=remove|DEVPATH=/devices/x|SUBSYSTEM=usb|", nil},
		{"libudev|x=y|", nil},
		{"add@/x|nothing|", nil},
		{"", nil},
	} {
		var got *Event
		if d, err := parseUevent(uevent(tc.in)); err == nil {
			if e, ok := u.translate(d); ok {
				got = &e
			}
		}
		assert.Equal(t, tc.want, got, tc.in)
	}
}

func TestKernelsOwnEvents(t *testing.T) {
	trigger := "/sys/class/net/lo/uevent"
	f, err := os.OpenFile(trigger, os.O_WRONLY, 0)
	if err != nil {
		t.Skipf("missing: may not write %s", trigger)
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var seen atomic.Bool
	var wg sync.WaitGroup
	u := Uevents{Match: func(d map[string]string) (string, bool) { return "bay", d["INTERFACE"] == "lo" }}
	wg.Go(func() {
		assert.NoError(t, u.Watch(ctx, func(e Event) {
			assert.Equal(t, Event{"bay", true}, e)
			seen.Store(true)
			cancel()
		}))
	})
	for ctx.Err() == nil {
		if _, err := f.WriteString("change"); err != nil {
			cancel()
			wg.Wait()
			t.Skipf("missing: may not write %s", trigger)
		}
		time.Sleep(50 * time.Millisecond)
	}
	wg.Wait()
	if !seen.Load() {
		t.Skip("missing: this namespace gets no device events")
	}
}

func FuzzUevent(f *testing.F) {
	f.Add(uevent("add@/devices/x|ACTION=add|DEVPATH=/devices/x|SUBSYSTEM=usb|"))
	f.Fuzz(func(t *testing.T, p []byte) { _, _ = parseUevent(p); _ = parseLineEvents(p) })
}
