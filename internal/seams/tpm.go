package seams

import (
	"context"
	"crypto"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/secureboot/bootpolicy"
	"github.com/trusttree/trusttree/update"
)

// Boot policies of secureboot are those that fscrypt seals to.
var _ fscrypt.BootPolicy = bootpolicy.Policy(nil)

// PolicyCallback turns a boot policy into go-tpm's callback, for sealing by
// other means.
func PolicyCallback(p bootpolicy.Policy) tpm2.PolicyCallback { return p.Satisfy }

// OnOneTPM lets one transport.TPM serve every package that needs a TPM.
func OnOneTPM(t transport.TPM, p fscrypt.BootPolicy, dir string) (*fscrypt.TPM, update.TPMFloorsConfig, moduleid.PCRs) {
	return &fscrypt.TPM{Device: t, Policies: []fscrypt.BootPolicy{p}}, update.TPMFloorsConfig{TPM: t, Dir: dir}, inventoryPCRs{t}
}

// inventoryPCRs measures moduleid's inventory into a TPM.
type inventoryPCRs struct{ t transport.TPM }

func (p inventoryPCRs) ExtendPCR(_ context.Context, pcr int, digests map[crypto.Hash][]byte) error {
	for bank, d := range digests {
		alg := map[crypto.Hash]tpm2.TPMAlgID{crypto.SHA1: tpm2.TPMAlgSHA1, crypto.SHA256: tpm2.TPMAlgSHA256, crypto.SHA384: tpm2.TPMAlgSHA384}[bank]
		handle := tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)}
		list := tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: alg, Digest: d}}}
		if _, err := (tpm2.PCRExtend{PCRHandle: handle, Digests: list}).Execute(p.t); err != nil {
			return fmt.Errorf("extend PCR %d: %w", pcr, err)
		}
	}
	return nil
}

func (p inventoryPCRs) ReadPCR(_ context.Context, pcr int, bank crypto.Hash) ([]byte, error) {
	sel := make([]byte, 3)
	sel[pcr/8] = 1 << (pcr % 8)
	alg := map[crypto.Hash]tpm2.TPMAlgID{crypto.SHA1: tpm2.TPMAlgSHA1, crypto.SHA256: tpm2.TPMAlgSHA256, crypto.SHA384: tpm2.TPMAlgSHA384}[bank]
	in := tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: alg, PCRSelect: sel}}}
	rsp, err := tpm2.PCRRead{PCRSelectionIn: in}.Execute(p.t)
	if err != nil || len(rsp.PCRValues.Digests) != 1 {
		return nil, fmt.Errorf("read PCR %d of bank %v: %w", pcr, bank, err)
	}
	return rsp.PCRValues.Digests[0].Buffer, nil
}

// Preflight lets update arm a slot only when the release's PCR policy is one
// that the volumes will open under.
func Preflight(key crypto.PublicKey, part string) func(context.Context, map[string][]byte) error {
	return func(_ context.Context, opaque map[string][]byte) error {
		p, err := bootpolicy.Signed(key, opaque[part])
		if err != nil {
			return err
		}
		if _, values := p.PCRs(); len(values) == 0 {
			return fmt.Errorf("part %q holds no policy by the owner's key", part)
		}
		return nil
	}
}
