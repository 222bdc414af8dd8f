package quote

import (
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/attest/reason"
)

// Sizes of what a TPM signs or returns (TPM 2.0 Library, part 2, section 10).
// Nothing longer is looked at.
const (
	maxAttested  = 1024 // TPMS_ATTEST
	maxSignature = 1024 // TPMT_SIGNATURE; RSA-4096 needs 518
	maxPublic    = 1024 // TPMT_PUBLIC; RSA-4096 needs about 600
	maxName      = 66   // algorithm and SHA-512
	maxDigest    = 64
)

const (
	magic         = 0xFF544347 // TPM_GENERATED_VALUE
	attestCertify = 0x8017     // TPM_ST_ATTEST_CERTIFY
	attestQuote   = 0x8018     // TPM_ST_ATTEST_QUOTE
)

// attested is a parsed TPMS_ATTEST. Its slices point into the input.
type attested struct {
	kind      uint16
	signer    []byte // qualified name of the key that signed
	extraData []byte
	clock     tpm2.TPMSClockInfo
	firmware  uint64
	selection []byte // quote: TPML_PCR_SELECTION as encoded
	digest    []byte // quote: pcrDigest
	name      []byte // certify: name of the certified object
	qualified []byte // certify: its qualified name
}

// parseAttested parses a TPMS_ATTEST of the kind wanted, whole: a missing or a
// trailing byte is an error (F11), and so is another magic or kind
// (CVE-2024-29038).
func parseAttested(b []byte, kind uint16) (a attested, err error) {
	if len(b) > maxAttested {
		return a, reason.Because(reason.TooLarge, fmt.Errorf("%w: attested data of %d bytes, limit %d", ErrMalformed, len(b), maxAttested))
	}
	c := cursor{b: b}
	if m := c.u32(); m != magic {
		return a, reason.Because(reason.NotFromTPM, fmt.Errorf("%w: magic is %08x: not made by a TPM", ErrMalformed, m))
	}
	if a.kind = c.u16(); a.kind != kind {
		return a, reason.Because(reason.WrongKind, fmt.Errorf("%w: attested data of kind %04x, want %04x", ErrMalformed, a.kind, kind))
	}
	a.signer = c.sized(maxName)
	a.extraData = c.sized(maxDigest)
	a.clock.Clock = c.u64()
	a.clock.ResetCount = c.u32()
	a.clock.RestartCount = c.u32()
	safe := c.u8()
	a.clock.Safe = tpm2.TPMIYesNo(safe == 1)
	a.firmware = c.u64()
	if kind == attestQuote {
		before := c.b
		n := c.u32()
		if n > maxBanks {
			return a, reason.Because(reason.TooManyBanks, fmt.Errorf("%w: quote over %d banks, limit %d", ErrMalformed, n, maxBanks))
		}
		for range n {
			c.u16()
			c.bytes(int(c.u8()))
		}
		a.selection = before[:len(before)-len(c.b)]
		a.digest = c.sized(maxDigest)
	} else {
		a.name = c.sized(maxName)
		a.qualified = c.sized(maxName)
	}
	if err := c.whole("attested data"); err != nil {
		return a, err
	}
	if safe > 1 {
		return a, reason.Because(reason.BadFlag, fmt.Errorf("%w: clock is safe: %d, want 0 or 1", ErrMalformed, safe))
	}
	return a, nil
}
