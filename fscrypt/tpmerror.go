package fscrypt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// explain turns the TPM's refusal into the reason that the caller can act on.
func (p *TPM) explain(t transport.TPM, off *PolicyError, clauses []clause, err error) error {
	switch {
	case errors.Is(err, tpm2.TPMRCLockout):
		return lockout(t)
	case errors.Is(err, tpm2.TPMRCAuthFail), errors.Is(err, tpm2.TPMRCBadAuth):
		return fmt.Errorf("TPM: %w", ErrAuth)
	case off.known():
		off.Err = err
		return off
	case errors.Is(err, errWithdrawn):
		return fmt.Errorf("the approval of this boot state was withdrawn: %w (TPM: %w)", ErrRevoked, err)
	case len(off.Diffs) > 0:
		off.Err = err
		return off
	}
	for _, c := range clauses {
		if reason := c.explain(t); reason != nil {
			return fmt.Errorf("%w (TPM: %w)", reason, err)
		}
	}
	off.Err = err
	return off
}

// watch notes which command of a boot policy the TPM refused.
type watch struct {
	transport.TPM
	refused tpm2.TPMCC
}

// Send implements transport.TPM.
func (w *watch) Send(cmd []byte) ([]byte, error) {
	rsp, err := w.TPM.Send(cmd)
	if err == nil && len(cmd) >= 10 && len(rsp) >= 10 && binary.BigEndian.Uint32(rsp[6:]) != 0 {
		w.refused = tpm2.TPMCC(binary.BigEndian.Uint32(cmd[6:]))
	}
	return rsp, err
}

// errWithdrawn: a version or a policy in NV is not the one that the approval
// was made for.
var errWithdrawn = errors.New("refused by what the TPM's NV memory says")

// asks marks an error that a look into NV memory led to.
func (w *watch) asks(err error) error {
	if w.refused == tpm2.TPMCCPolicyNV || w.refused == tpm2.TPMCCPolicyAuthorizeNV {
		return fmt.Errorf("%w: %w", errWithdrawn, err)
	}
	return err
}

func lockout(t transport.TPM) error {
	e := new(LockoutError)
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTLockoutInterval), PropertyCount: 1}.Execute(t)
	if err != nil {
		return e
	}
	props, err := rsp.CapabilityData.Data.TPMProperties()
	if err == nil && len(props.TPMProperty) == 1 && props.TPMProperty[0].Property == tpm2.TPMPTLockoutInterval {
		e.Wait = time.Duration(props.TPMProperty[0].Value) * time.Second
	}
	return e
}
