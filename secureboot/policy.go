package secureboot

import (
	"crypto"
	"crypto/fips140"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/trusttree/trusttree/secureboot/eventlog"
)

// Policy is an appraisal policy with its reference values. The zero value
// denies everything. Make one with Learn, or read one with VerifyPolicy (signed)
// or ParsePolicy (where something else has verified it, such as a TUF target).
type Policy struct {
	Name     string
	Serial   uint64    // grows with every issue; see VerifyPolicy's floor
	NotAfter time.Time // required: a policy without an end denies

	Bank         crypto.Hash // the one bank that is judged
	InsecureSHA1 bool        // allows Bank to be SHA-1

	// Every quoted PCR that was ever extended must be in one of these lists.
	Require []int // every event must match a reference value, in order
	Replay  []int // a log must explain the value; what it says is not judged (PCR 13: moduleid judges it)
	Ignore  []int // not looked at

	Components []Component       // reference values; see Component
	SecureBoot *SecureBootPolicy // nil: Secure Boot is reported, not judged
	IMA        *IMAPolicy        // nil: PCR 10 must be in Ignore, unless it was never extended

	MaxFailedAttempts int // boot options that may have returned before the good one started
}

// SecureBootPolicy says what Secure Boot must have been like. Where no
// component has records for PCR 7, these rules judge each of its events.
type SecureBootPolicy struct {
	Enforcing   bool     `json:"enforcing"`                  // State.Enforcing must hold
	PK          []string `json:"pk,omitempty"`               // the keys found must be among these (Signature.ID)
	KEK         []string `json:"kek,omitempty"`              //
	DB          []string `json:"db,omitempty"`               //
	DBXAtLeast  []string `json:"dbxAtLeast,omitempty"`       // dbx must hold at least these
	Authorities []string `json:"authorities,omitempty"`      // who may vouch for images (Authority.ID)
	MinSBAT     string   `json:"minSBAT,omitempty"`          // shim's revocation level must be at least this (SBAT CSV); empty: not judged
	TestKeys    bool     `json:"insecureTestKeys,omitempty"` // allows keys that say "DO NOT TRUST"
	DMA         bool     `json:"insecureDMA,omitempty"`      // allows "DMA Protection Disabled"
}

// IMAPolicy says which files may have been measured by Linux IMA.
type IMAPolicy struct {
	Files           map[string][]string `json:"files,omitempty"`                   // path: digests ("sha256:…"); path "*": under any name
	Keys            [][]byte            `json:"keys,omitempty"`                    // SPKI (DER) of keys whose IMA signature admits a file
	Violations      bool                `json:"insecureViolations,omitempty"`      // allows files that were written while they were measured
	SHA1PaddedBank  bool                `json:"insecureSHA1PaddedBank,omitempty"`  // allows a bank that the kernel fills with padded SHA-1
	MaxUnverified   int                 `json:"maxUnverified,omitempty"`           // entries that may follow the quote; 0 means any number
	IgnoreFileNames bool                `json:"insecureIgnoreFileNames,omitempty"` // reports files that are not allowed, without consequence
}

// Evidence is what the appraisal judges.
type Evidence struct {
	Bank crypto.Hash
	// PCRs are the values of one verified quote, and nothing else: the caller
	// has checked its signature, nonce and PCR digest.
	PCRs map[int][]byte
	// Unquoted says that no quote stands behind PCRs. The status is then
	// Warning at best.
	Unquoted bool

	EventLog     []byte // binary_bios_measurements
	IMALog       []byte // binary_runtime_measurements; nil: none
	UserspaceLog []byte // CEL, JSON or TLV: extends of PCR 8 and up after the firmware's, at most 4096; nil: none
	CCEL         bool   // EventLog is a CCEL area, PCRs are its measurement registers: Secure Boot is then not judged

	// IMAState continues the appraisal that returned it as Result.IMA: IMALog is
	// then what follows the log's first IMAState.State.Bytes bytes, and costs
	// time for the new entries alone. nil: IMALog is the whole log.
	IMAState *IMAState
	// ResetCount and RestartCount are the verified quote's. An IMAState of other
	// counts is of another boot and is refused.
	ResetCount, RestartCount uint32
}

// validate checks what does not depend on evidence.
func (p *Policy) validate() error {
	switch {
	case len(p.Require) == 0:
		return errors.New("it requires no PCR")
	case eventlog.HashName(p.Bank) == "":
		return fmt.Errorf("hash %d is no PCR bank", uint(p.Bank))
	case p.Bank == crypto.SHA1 && !p.InsecureSHA1:
		return errors.New("SHA-1 is not allowed")
	case p.Bank == crypto.SHA1 && fips140.Enforced():
		return errors.New("SHA-1 is not allowed in FIPS 140-only mode")
	case p.MaxFailedAttempts < 0:
		return errors.New("negative number of failed attempts")
	}
	seen := make(map[int]bool)
	for _, l := range [][]int{p.Require, p.Replay, p.Ignore} {
		for _, pcr := range l {
			if pcr < 0 || pcr > 23 {
				return fmt.Errorf("PCR %d out of range 0 to 23", pcr)
			}
			if seen[pcr] {
				return fmt.Errorf("PCR %d is listed twice", pcr)
			}
			seen[pcr] = true
		}
	}
	for _, pcr := range p.Require {
		if pcr == 16 || pcr == 23 {
			return fmt.Errorf("PCR %d can be reset by software: it can't be required", pcr)
		}
	}
	if p.SecureBoot != nil {
		if err := checkSBAT(p.SecureBoot.MinSBAT); err != nil {
			return err
		}
	}
	for i := range p.Components {
		c := &p.Components[i]
		if c.Name == "" || len(c.Variants) == 0 {
			return fmt.Errorf("component %d has no name or no variant", i)
		}
		for j := range c.Variants {
			for _, r := range c.Variants[j].Records {
				if r.PCR < 0 || r.PCR > 23 || len(r.Digests) == 0 {
					return fmt.Errorf("component %q has a record without PCR or digest", c.Name)
				}
			}
		}
	}
	return nil
}

func (p *Policy) title() string { return fmt.Sprintf("%s, serial %d", p.Name, p.Serial) }

// Appraise judges evidence at a time. It does no I/O and is safe for
// concurrent use. The result is Affirming only if every quoted PCR is explained
// and every required one matches; Result.Findings has every reason.
func (p *Policy) Appraise(ev Evidence, now time.Time) *Result {
	a := appraisal{r: &Result{PCRs: make(map[int]PCRStatus, len(ev.PCRs))}, ev: &ev, p: p}
	if p == nil {
		a.p = &Policy{}
	}
	a.r.Policy = a.p.title()
	if err := a.p.validate(); err != nil {
		a.r.add(Contraindicated, CodePolicyEmpty, -1, -1, "policy: %v", err)
		return a.r
	}
	switch {
	case now.IsZero():
		a.r.add(Contraindicated, CodePolicyExpired, -1, -1, "the verifier gave no time")
	case a.p.NotAfter.IsZero():
		a.r.add(Contraindicated, CodePolicyExpired, -1, -1, "the policy has no end")
	case now.After(a.p.NotAfter):
		a.r.add(Contraindicated, CodePolicyExpired, -1, -1, "the policy ended on %s", a.p.NotAfter.UTC().Format(time.RFC3339))
	}
	if ev.Bank != a.p.Bank {
		a.r.add(Contraindicated, CodeEvidenceBank, -1, -1, "evidence is of bank %s, the policy judges %s", eventlog.HashName(ev.Bank), eventlog.HashName(a.p.Bank))
		return a.r
	}
	a.run()
	if a.r.Status == None {
		a.r.Status = Affirming
	}
	return a.r
}

// Inspect judges evidence without reference values: whether the logs explain
// the PCRs and what Secure Boot was like. The status is Warning at best. A PCR
// from 8 up without any event is a warning too: its log may not have been
// handed over.
func Inspect(ev Evidence) *Result {
	a := appraisal{r: &Result{PCRs: make(map[int]PCRStatus, len(ev.PCRs))}, ev: &ev, inspect: true, p: &Policy{Bank: ev.Bank, Ignore: []int{16, 23}}}
	for pcr := range ev.PCRs {
		if pcr != 16 && pcr != 23 {
			a.p.Replay = append(a.p.Replay, pcr)
		}
	}
	slices.Sort(a.p.Replay)
	a.p.SecureBoot = &SecureBootPolicy{Enforcing: true}
	if len(ev.IMALog) > 0 {
		a.p.IMA = &IMAPolicy{IgnoreFileNames: true}
	}
	a.r.add(Warning, CodePolicyNone, -1, -1, "nothing was compared with reference values: give a policy")
	if ev.Bank == crypto.SHA1 {
		a.r.add(Warning, CodeEvidenceBank, -1, -1, "SHA-1 does not resist collisions")
	}
	a.run()
	return a.r
}
