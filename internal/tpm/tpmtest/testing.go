package tpmtest

import (
	"os"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/internal/tpm"
)

var shared = sync.OnceValues(func() (*Maker, error) {
	dir, err := os.MkdirTemp("", "tpmtest")
	if err != nil {
		return nil, err
	}
	return NewMaker(dir)
})

// New makes a TPM with EK certificates for a test and returns it with its
// maker; the maker is shared, the TPM is the test's own. It is the TPM that the
// environment's TRUSTTREE_TPM names: softtpm (the default), which needs nothing
// installed, or swtpm, the second opinion. It fails the test when the test
// leaves handles or sessions in the TPM.
func New(tb testing.TB) (*TPM, *Maker) {
	tb.Helper()
	switch name := os.Getenv("TRUSTTREE_TPM"); name {
	case "", "softtpm":
		return NewSoft(tb)
	case "swtpm":
		return NewSwtpm(tb)
	default:
		tb.Fatalf("TRUSTTREE_TPM=%s: say softtpm or swtpm", name)
		return nil, nil
	}
}

// NewSwtpm is New with a swtpm. It skips (fails under CI) where swtpm is
// missing.
func NewSwtpm(tb testing.TB) (*TPM, *Maker) {
	tb.Helper()
	testenv.Tool(tb, "swtpm", "swtpm")
	testenv.Tool(tb, "swtpm_setup", "swtpm-tools")
	m, err := shared()
	if err != nil {
		tb.Fatal(err)
	}
	return newTPM(tb, m), m
}

var sharedSoft = sync.OnceValues(NewSoftMaker)

// NewSoft is New with a TPM in this process (internal/softtpm), which needs no
// program installed.
func NewSoft(tb testing.TB) (*TPM, *Maker) {
	tb.Helper()
	m, err := sharedSoft()
	if err != nil {
		tb.Fatal(err)
	}
	return newTPM(tb, m), m
}

// Each runs a test on both TPMs, as subtests named softtpm and swtpm.
func Each(t *testing.T, f func(t *testing.T, device *TPM, maker *Maker)) {
	t.Run("softtpm", func(t *testing.T) {
		d, m := NewSoft(t)
		f(t, d, m)
	})
	t.Run("swtpm", func(t *testing.T) {
		d, m := NewSwtpm(t)
		f(t, d, m)
	})
}

// newTPM makes the test's own TPM and checks at its end that it is empty.
func newTPM(tb testing.TB, m *Maker) *TPM {
	tb.Helper()
	t, err := m.NewTPM(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		defer func() { _ = t.PowerOff() }()
		if !t.powered() {
			return
		}
		if h, err := tpm.LoadedHandles(t.Device); err == nil && h.Count() > 0 && !tb.Failed() {
			tb.Errorf("test left handles in the TPM: transient %x, sessions %x", h.Transient, h.Sessions)
		}
	})
	return t
}

// Bus is a transport that records every byte that passes over the TPM's bus,
// as a probe on its wires would.
type Bus struct {
	transport.TPM

	mu  sync.Mutex
	log []byte
}

// Send implements transport.TPM.
func (b *Bus) Send(command []byte) ([]byte, error) {
	rsp, err := b.TPM.Send(command)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.log = append(append(b.log, command...), rsp...)
	return rsp, err
}

// Bytes returns what has been recorded.
func (b *Bus) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]byte(nil), b.log...)
}
