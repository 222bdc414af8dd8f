package tpmtest

import (
	"context"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/internal/softtpm"
	"github.com/trusttree/trusttree/internal/tpm"
)

// NewSoftMaker makes a manufacturer whose TPMs run in this process.
func NewSoftMaker() (*Maker, error) {
	m, err := softtpm.NewMaker()
	if err != nil {
		return nil, err
	}
	return &Maker{Root: m.Root, Intermediates: m.Intermediates, soft: m}, nil
}

func (m *Maker) newSoft(ctx context.Context) (*TPM, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	trace, err := record()
	if err != nil {
		return nil, err
	}
	soft, err := softtpm.New(softtpm.Config{Maker: m.soft, Trace: trace})
	if err != nil {
		return nil, err
	}
	t := &TPM{soft: soft}
	return t, t.softUp()
}

// softUp gives the TPM power and starts it.
func (t *TPM) softUp() error {
	t.soft.PowerOn()
	t.Device = tpm.Wrap(t.soft)
	_, err := tpm2.Startup{StartupType: tpm2.TPMSUClear}.Execute(t.Device)
	return err
}

func (t *TPM) powered() bool {
	if t.soft != nil {
		return t.soft.Powered()
	}
	return t.cmd != nil
}
