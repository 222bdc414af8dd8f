package attest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/attest/bootid"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/attest/registry"
)

// judge collects everything that speaks against evidence which is authentic.
func (v *Verifier) judge(ctx context.Context, d registry.Device, in Input, values quote.Values, minted time.Time, boot string) *AppraisalError {
	// The device is known and its attestation key's TPM proven.
	verdict := &AppraisalError{Status: StatusAffirming, claims: map[string]Status{"instance-identity": StatusAffirming}}
	if err := forward(d, in.Clock, minted); err != nil {
		verdict.add(err)
	} else if err := together(d, in.Clock, boot); err != nil {
		verdict.add(err)
	}
	if err := v.c.Endorsers.firmwareFloor(d.Manufacturer, values); err != nil {
		verdict.add(err)
	}
	for _, sel := range v.c.PCRs {
		for _, p := range v.c.Extended {
			if untouched(in.Banks[sel.Bank][p]) {
				verdict.add(reason.Because(reason.Unmeasured, fmt.Errorf("%w: PCR %d of bank %v", ErrUnmeasured, p, sel.Bank)))
			}
		}
	}
	var notes []Reason // of appraisers that affirm: no reason for a refusal
	for i, a := range v.c.Appraisers {
		o := a(ctx, in)
		o.Status = worst(o)
		if o.Status == StatusAffirming {
			maps.Copy(verdict.claims, o.Claims)
			notes = append(notes, o.Reasons...)
		} else {
			verdict.Reasons = append(verdict.Reasons, o.Reasons...)
			verdict.causes = append(verdict.causes, fmt.Errorf("%w: appraiser %d says %v", ErrNotAffirming, i+1, o.Status))
			if len(o.Reasons) == 0 {
				verdict.Reasons = append(verdict.Reasons, Reason{"no-reason", fmt.Sprintf("appraiser %d says %v", i+1, o.Status)})
			}
			verdict.Status = max(verdict.Status, o.Status)
		}
	}
	if len(verdict.causes) == 0 {
		verdict.Reasons = notes
	}
	return verdict
}

// claimNames are the claims of the trustworthiness vector (draft-ietf-rats-ar4si).
var claimNames = [...]string{
	"instance-identity", "configuration", "executables", "file-system", "hardware", "runtime-opaque", "storage-opaque", "sourced-data",
}

// worst is an opinion's status with its claims taken into account: an opinion
// does not affirm while a claim of its own says otherwise, or says nothing that
// is known.
func worst(o Opinion) Status {
	status := o.Status
	for name, s := range o.Claims {
		switch {
		case !slices.Contains(claimNames[:], name) || s != StatusAffirming && s != StatusWarning && s != StatusContraindicated:
			status = max(status, StatusContraindicated)
		case s != StatusAffirming && status != StatusNone:
			status = max(status, s)
		}
	}
	return status
}

// forward returns ErrRolledBack when a TPM's clock or counters are behind what
// was seen before: a clone, or a restored state. Evidence that answers a
// challenge minted before the last appraisal may be the older of two that were
// under way together, so its clock alone does not tell.
func forward(d registry.Device, c tpm2.TPMSClockInfo, minted time.Time) error {
	switch {
	case c.ResetCount < d.ResetCount:
		return reason.Because(reason.ResetCount, fmt.Errorf("%w: reset count %d after %d", ErrRolledBack, c.ResetCount, d.ResetCount))
	case c.ResetCount == d.ResetCount && c.RestartCount < d.RestartCount:
		return reason.Because(reason.RestartCount, fmt.Errorf("%w: restart count %d after %d", ErrRolledBack, c.RestartCount, d.RestartCount))
	case c.ResetCount == d.ResetCount && c.RestartCount == d.RestartCount && c.Clock < d.Clock && minted.After(d.Appraised):
		return reason.Because(reason.Clock, fmt.Errorf("%w: clock %d ms after %d ms", ErrRolledBack, c.Clock, d.Clock))
	}
	return nil
}

// bootOf returns the boot ID in evidence, or "" without any.
func bootOf(bodies []Body) (string, error) {
	for _, b := range bodies {
		if b.MediaType == bootid.MediaType {
			id, err := bootid.Parse(b.Data)
			if err != nil {
				return "", reason.Because(reason.Malformed, fmt.Errorf("%w: %w", ErrMalformed, err))
			}
			return id, nil
		}
	}
	return "", nil
}

// together returns ErrReset unless TPM and machine started anew together since
// the last appraisal, or neither did. It says nothing of devices that never
// showed a boot ID.
func together(d registry.Device, c tpm2.TPMSClockInfo, boot string) error {
	switch reset := c.ResetCount != d.ResetCount; {
	case d.BootID == "":
		return nil
	case boot == "":
		return reason.Because(reason.NoBootID, fmt.Errorf("%w: device %s sends no boot ID any more: revoke and release it if that is meant", ErrReset, d.ID))
	case reset && boot == d.BootID:
		return reason.Because(reason.ResetWithoutReboot, fmt.Errorf("%w: reset count %d after %d in one boot: something reset the TPM of device %s beside the machine", ErrReset, c.ResetCount, d.ResetCount, d.ID))
	case !reset && boot != d.BootID:
		return reason.Because(reason.RebootWithoutReset, fmt.Errorf("%w: device %s has booted and its TPM was not reset: still reset count %d", ErrReset, d.ID, c.ResetCount))
	}
	return nil
}

// sameBoot returns the clock seen last when it was in the same boot, else 0.
func sameBoot(d registry.Device, c tpm2.TPMSClockInfo) uint64 {
	if c.ResetCount == d.ResetCount && c.RestartCount == d.RestartCount {
		return d.Clock
	}
	return 0
}

func untouched(v []byte) bool {
	return !slices.ContainsFunc(v, func(b byte) bool { return b != 0 }) || !slices.ContainsFunc(v, func(b byte) bool { return b != 0xff })
}
