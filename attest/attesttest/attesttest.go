package attesttest

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/internal/softtpm"
	"github.com/trusttree/trusttree/internal/tpm"
)

// Maker is a TPM manufacturer made for a test. It is safe for concurrent use.
type Maker struct {
	// Root is the certificate under which the EK certificates of its TPMs are.
	Root *x509.Certificate
	// Intermediates are the issuers between Root and the EK certificates.
	Intermediates []*x509.Certificate

	soft *softtpm.Maker
}

// NewMaker makes a manufacturer with new keys.
func NewMaker() (*Maker, error) {
	m, err := softtpm.NewMaker()
	if err != nil {
		return nil, fmt.Errorf("attesttest: %w", err)
	}
	return &Maker{Root: m.Root, Intermediates: m.Intermediates, soft: m}, nil
}

// OpenMaker returns the manufacturer that is kept in a directory, and makes it
// when it is not there. Its root also lies there as maker-root.pem.
func OpenMaker(dir string) (*Maker, error) {
	m, err := softtpm.OpenMaker(dir)
	if err != nil {
		return nil, fmt.Errorf("attesttest: %w", err)
	}
	return &Maker{Root: m.Root, Intermediates: m.Intermediates, soft: m}, nil
}

// NewTPM makes a TPM of this manufacturer, powers it and starts it with
// TPM2_Startup(CLEAR).
func (m *Maker) NewTPM() (*TPM, error) { return m.OpenTPM("") }

// OpenTPM is NewTPM with a TPM whose state is kept in a directory: it is made
// when it is not there, and else has lost its power since it was last used.
func (m *Maker) OpenTPM(dir string) (*TPM, error) {
	soft, err := softtpm.New(softtpm.Config{Maker: m.soft, Dir: dir})
	if err != nil {
		return nil, fmt.Errorf("attesttest: %w", err)
	}
	t := &TPM{soft: soft}
	return t, t.start(0)
}

// TPM is a software TPM for tests. It implements go-tpm's transport.TPM and is
// safe for concurrent use.
type TPM struct{ soft *softtpm.TPM }

// Send executes one command. It fails only while the power is off.
func (t *TPM) Send(command []byte) ([]byte, error) { return t.soft.Send(command) }

// Serve executes the raw TPM commands that come over the connections of l until
// ctx is done, and closes them. Programs open such a socket as "unix:PATH".
func (t *TPM) Serve(ctx context.Context, l net.Listener) error { return t.soft.Serve(ctx, l) }

// PowerOff cuts the power, without TPM2_Shutdown.
func (t *TPM) PowerOff() { t.soft.PowerOff() }

// Reboot shuts the TPM down in order, if it has power, and starts it again:
// PCRs are reset, transient objects and sessions gone, persistent ones and NV
// indices kept.
func (t *TPM) Reboot() error { return t.reboot(0) }

func (t *TPM) reboot(locality int) error {
	if t.soft.Powered() {
		_, err := tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}.Execute(t.soft)
		if err != nil && !errors.Is(err, tpm2.TPMRCInitialize) { // which a failed startup leaves
			return fmt.Errorf("attesttest: shutdown: %w", err)
		}
		t.soft.PowerOff()
	}
	return t.start(locality)
}

func (t *TPM) start(locality int) error {
	t.soft.PowerOn()
	if _, err := (tpm2.Startup{StartupType: tpm2.TPMSUClear}).Execute(at{t.soft, locality}); err != nil {
		return fmt.Errorf("attesttest: startup: %w", err)
	}
	return nil
}

// at sends commands at a locality.
type at struct {
	t        *softtpm.TPM
	locality int
}

func (a at) Send(command []byte) ([]byte, error) { return a.t.SendAt(a.locality, command) }

// Measurement is one extend of a boot: an event log's entry.
type Measurement struct {
	PCR     int                    // 0 to 23
	Digests map[crypto.Hash][]byte // one for each bank
}

// Boot reboots the TPM and extends the measurements in their order, as
// firmware does: the PCRs are then those of the boot that the event log tells.
func (t *TPM) Boot(log ...Measurement) error { return t.BootAt(0, log...) }

// BootAt is Boot of a machine whose firmware starts the TPM at a locality: 0,
// 3, or 4 (an H-CRTM). The event log's StartupLocality event tells it, and PCR 0
// begins with it.
func (t *TPM) BootAt(locality int, log ...Measurement) error {
	if err := t.reboot(locality); err != nil {
		return err
	}
	for i, m := range log {
		if err := tpm.ExtendPCR(t.soft, m.PCR, m.Digests); err != nil {
			return fmt.Errorf("attesttest: measurement %d: %w", i, err)
		}
	}
	return nil
}
