package secureboot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/trusttree/trusttree/secureboot/eventlog"
)

// appraisal is one run of a policy over evidence.
type appraisal struct {
	p       *Policy
	ev      *Evidence
	r       *Result
	v       *eventlog.Verified
	inspect bool
}

const pcrIMA = 10

// maxUserspace bounds the records of a user space log: JSON costs the verifier
// some microseconds each.
const maxUserspace = 4096

// notJudged is the detail of a PCR whose log did not verify, or not yet.
const notJudged = "not judged"

func (a *appraisal) run() {
	if a.ev.Unquoted {
		a.r.add(Warning, CodeEvidenceUnquoted, -1, -1, "no verified quote stands behind the PCR values")
	}
	for _, l := range [][]int{a.p.Require, a.p.Replay} {
		for _, pcr := range l {
			if _, ok := a.ev.PCRs[pcr]; !ok {
				a.r.PCRs[pcr] = PCRStatus{}
				a.r.add(Contraindicated, CodePCRNotQuoted, pcr, -1, "the policy needs it, the quote does not have it")
			}
		}
	}
	values := make(map[int][]byte, len(a.ev.PCRs))
	for pcr, v := range a.ev.PCRs {
		switch {
		case slices.Contains(a.p.Ignore, pcr):
			a.r.PCRs[pcr] = PCRStatus{Status: None, Detail: "ignored"}
			continue
		case pcr == pcrIMA && a.p.IMA != nil:
			a.r.PCRs[pcr] = PCRStatus{Status: None, Detail: notJudged}
			continue
		}
		values[pcr] = v
		a.r.PCRs[pcr] = PCRStatus{Status: None, Detail: notJudged}
	}
	if !a.verify(values) {
		return
	}
	for pcr := range values {
		s := PCRStatus{Status: Affirming, Events: a.v.Len(pcr)}
		switch {
		case slices.Contains(a.p.Require, pcr):
			s.Detail = "reference"
		case s.Events == 0:
			s.Detail = "unused"
		default:
			s.Detail = "replayed"
		}
		a.r.PCRs[pcr] = s
		if s.Events > 0 && !slices.Contains(a.p.Require, pcr) && !slices.Contains(a.p.Replay, pcr) {
			a.r.add(Contraindicated, CodePCRUnlisted, pcr, -1, "extended %d times, but the policy does not say what to do with it", s.Events)
		}
	}
	if !a.ev.CCEL { // its registers are not the PCRs that hold Secure Boot
		a.r.SecureBoot = SecureBootState(a.v)
		a.structure()
		a.attempts()
	}
	a.secureBoot()
	a.match()
	a.ima()
	slices.SortStableFunc(a.r.Findings, func(x, y Finding) int { return int(y.Severity) - int(x.Severity) })
}

// verify parses the logs and replays them against the values.
func (a *appraisal) verify(values map[int][]byte) bool {
	log, err := eventlog.Parse(a.ev.EventLog, &eventlog.Options{CCEL: a.ev.CCEL})
	if err != nil {
		a.r.add(Contraindicated, CodeEvidenceMalformed, -1, -1, "event log: %v", err)
		return false
	}
	var after []*eventlog.Log
	if len(a.ev.UserspaceLog) > 0 {
		u, err := eventlog.ParseCEL(a.ev.UserspaceLog, &eventlog.Options{MaxEvents: maxUserspace})
		if err != nil {
			a.r.add(Contraindicated, CodeEvidenceMalformed, -1, -1, "user space log: %v", err)
			return false
		}
		for e := range u.Events() {
			if e.PCR < 8 {
				a.r.add(Contraindicated, CodeEvidenceMalformed, e.PCR, e.Num, "user space log extends a PCR of the firmware")
				return false
			}
		}
		if u.Len() > 0 {
			after = append(after, u)
		}
	}
	if len(values) == 0 {
		a.r.add(Contraindicated, CodePCRNotQuoted, -1, -1, "no PCR values to judge")
		return false
	}
	a.v, err = log.Verify(a.ev.Bank, values, after...)
	var re *eventlog.ReplayError
	if errors.As(err, &re) && a.inspect && a.setAside(re, values) {
		a.v, err = log.Verify(a.ev.Bank, values, after...)
	}
	switch {
	case errors.As(err, &re):
		for _, m := range re.Mismatches {
			code := CodePCRMismatch
			if m.Events == 0 {
				code = CodePCRUnexplained
			}
			f := a.r.add(Contraindicated, code, m.PCR, -1, "%s", m)
			f.Want, f.Got = m.Replay, m.Quoted
		}
	case err != nil:
		a.r.add(Contraindicated, CodeEvidenceMalformed, -1, -1, "%v", err)
	}
	return err == nil
}

// setAside takes PCRs of user space without events out of an inspection. It
// reports whether nothing else speaks against the log.
func (a *appraisal) setAside(re *eventlog.ReplayError, values map[int][]byte) bool {
	for _, m := range re.Mismatches {
		if m.Events > 0 || m.PCR < 8 {
			return false
		}
	}
	for _, m := range re.Mismatches {
		delete(values, m.PCR)
		a.r.add(Warning, CodePCRUnexplained, m.PCR, -1, "%s", m)
	}
	return len(values) > 0
}

// structure checks the separators of PCR 0 to 7 (PFP section 10.4.1).
func (a *appraisal) structure() {
	for pcr := range 8 {
		if !a.v.Covers(pcr) {
			continue
		}
		var n int
		for e := range a.v.Events(pcr) {
			val, ok := e.Separator()
			claimed := e.Claimed()
			switch {
			case !ok && claimed.Type == eventlog.EvSeparator:
				a.r.add(Contraindicated, CodeLogSeparator, pcr, e.Num, "event calls itself a separator but is none")
			case !ok:
			case val == 1:
				a.r.add(Contraindicated, CodeLogFirmwareError, pcr, e.Num, "the firmware measured an error")
				n++
			case claimed.Type != eventlog.EvSeparator || !bytes.Equal(claimed.Data, binary.LittleEndian.AppendUint32(nil, val)):
				a.r.add(Contraindicated, CodeLogSeparator, pcr, e.Num, "separator is disguised as %s", claimed.Type)
				n++
			default:
				n++
			}
		}
		if n != 1 {
			a.r.add(Contraindicated, CodeLogSeparator, pcr, -1, "%d separators, want one", n)
		}
	}
}

func (a *appraisal) attempts() {
	s := a.r.SecureBoot
	if s.FailedAttempts > a.p.MaxFailedAttempts {
		sev := Contraindicated
		if a.inspect {
			sev = Warning
		}
		a.r.add(sev, CodeBootAttempts, 4, -1, "%d boot options returned to the firmware, %d allowed", s.FailedAttempts, a.p.MaxFailedAttempts)
	}
	if s.AttemptsOmitted {
		a.r.add(Warning, CodeBootOmitted, 4, -1, "the firmware left out boot attempts")
	}
}

// match compares the required PCRs with the components.
func (a *appraisal) match() {
	m := matcher{bank: a.p.Bank, comps: a.p.Components}
	for _, pcr := range a.p.Require {
		switch {
		case !a.v.Covers(pcr) || pcr == pcrIMA && a.p.IMA != nil:
			continue
		case !covers(a.p.Components, pcr):
			if pcr == 7 && a.p.SecureBoot != nil { // judged by rules
				s := a.r.PCRs[7]
				if s.Status == Affirming {
					s.Detail = "rules"
					a.r.PCRs[7] = s
				}
				continue
			}
			if a.v.Len(pcr) > 0 {
				a.r.add(Contraindicated, CodePolicyReference, pcr, -1, "required, but the policy has no reference values for it")
			}
			continue
		}
		m.pcrs |= 1 << pcr
		m.events[pcr] = a.digests(pcr)
	}
	if m.pcrs == 0 {
		return
	}
	ok, overflow := m.match()
	switch {
	case ok:
		return
	case overflow:
		a.r.add(Contraindicated, CodePolicyReference, -1, -1, "the components allow more than %d readings of this log", maxStates)
		return
	}
	before := len(a.r.Findings)
	for pcr := range 24 {
		if m.pcrs&(1<<pcr) != 0 {
			a.explain(pcr, m.events[pcr])
		}
	}
	if len(a.r.Findings) == before {
		a.r.add(Contraindicated, CodePCRInconsistent, -1, -1, "each PCR matches, but no choice of one variant for each component matches all of them")
	}
}

// digests returns the digests of a PCR's events; in PCR 4 without the failed
// attempts that the policy allows.
func (a *appraisal) digests(pcr int) [][]byte {
	n := a.v.Len(pcr)
	ds := make([][]byte, n)
	for i := range n {
		ds[i] = a.v.At(pcr, i).Digest
	}
	if pcr != 4 || a.p.MaxFailedAttempts == 0 {
		return ds
	}
	d := stringDigests(a.p.Bank)
	out := ds[:0]
	for i := 0; i < n; i++ {
		if i+1 < n && bytes.Equal(ds[i], d.returning) && bytes.Equal(ds[i+1], d.calling) {
			i++
			continue
		}
		out = append(out, ds[i])
	}
	return out
}

// explain says where one PCR leaves the reference values.
func (a *appraisal) explain(pcr int, events [][]byte) {
	m := matcher{bank: a.p.Bank, comps: a.p.Components, pcrs: 1 << pcr}
	m.events[pcr] = events
	if ok, _ := m.match(); ok {
		return
	}
	at := int(m.far[pcr])
	var want []byte
	var more string
	if w := m.want[pcr][at]; len(w) > 0 {
		want = w[0]
		if len(w) > 1 {
			more = fmt.Sprintf(" or one of %d others", len(w)-1)
		}
	}
	if at >= len(events) {
		f := a.r.add(Contraindicated, CodePCRIncomplete, pcr, -1, "the log ends after %d events, reference values expect %x%s", at, want, more)
		f.Want = want
		return
	}
	num, hint := -1, ""
	for e := range a.v.Events(pcr) {
		if bytes.Equal(e.Digest, events[at]) {
			num, hint = e.Num, e.Claimed().Hint()
		}
	}
	expected := "nothing more"
	if want != nil {
		expected = fmt.Sprintf("%x%s", want, more)
	}
	f := a.r.add(Contraindicated, CodePCRReference, pcr, num, "%x (%s) is not allowed here, want %s", events[at], hint, expected)
	f.Want, f.Got = want, events[at]
}

// secureBoot applies the policy's rules to the state.
func (a *appraisal) secureBoot() {
	s, p := a.r.SecureBoot, a.p.SecureBoot
	if s == nil {
		if p != nil {
			sev := Contraindicated
			if a.inspect {
				sev = Warning
			}
			a.r.add(sev, CodeSBUnknown, -1, -1, "a CCEL area does not say which of its registers' events are about Secure Boot")
		}
		return
	}
	enforcing, findings := s.Enforcing()
	a.r.Enforcing = enforcing
	if p == nil {
		return
	}
	pinned := covers(a.p.Components, 7)
	if !p.Enforcing {
		findings = nil
	}
	for _, f := range s.findings {
		if f.Code == CodeSBUnknownEvent && pinned || f.Code != CodeSBUnknownEvent && p.Enforcing {
			continue
		}
		findings = append(findings, f)
	}
	for _, f := range findings {
		a.r.add(f.Severity, f.Code, f.PCR, f.Event, "%s", f.Detail)
	}
	if s.DMAUnprotected && !p.DMA {
		a.r.add(Contraindicated, CodeSBDMAUnprotected, 7, -1, "the firmware measured that DMA protection was off")
	}
	a.testKeys(p)
	if a.inspect {
		return
	}
	subset := func(name string, have []Signature, allowed []string) {
		bad := 0
		for _, sig := range have {
			if id := sig.ID(); !slices.Contains(allowed, id) {
				a.r.add(Contraindicated, CodeSBKeyNotAllowed, 7, -1, "%s holds %s, which the policy does not allow", name, id)
				if bad++; bad == maxFindings {
					break
				}
			}
		}
	}
	subset("PK", s.PK, p.PK)
	subset("KEK", s.KEK, p.KEK)
	subset("db", s.DB, p.DB)
	if len(p.DBXAtLeast) > 0 {
		have := make(map[string]bool, len(s.DBX))
		for _, sig := range s.DBX {
			have[sig.ID()] = true
		}
		missing := 0
		for _, id := range p.DBXAtLeast {
			if !have[id] {
				missing++
			}
		}
		if missing > 0 {
			a.r.add(Contraindicated, CodeSBDBXIncomplete, 7, -1, "dbx lacks %d of the %d required revocations", missing, len(p.DBXAtLeast))
		}
	}
	for _, au := range s.Authorities {
		if id := au.ID(); !slices.Contains(p.Authorities, id) && !(au.Variable == "SbatLevel" && p.MinSBAT != "") {
			a.r.add(Contraindicated, CodeSBAuthorityNotAllowed, 7, au.num, "%q vouched for an image, which the policy does not allow", id)
		}
	}
	if p.MinSBAT != "" {
		if err := sbatAtLeast(s.Shim.SBATLevel, p.MinSBAT); err != nil {
			a.r.add(Contraindicated, CodeSBSBATLevel, 7, -1, "%v", err)
		}
	}
}

func (a *appraisal) testKeys(p *SecureBootPolicy) {
	if p.TestKeys {
		return
	}
	for _, l := range [][]Signature{a.r.SecureBoot.PK, a.r.SecureBoot.KEK, a.r.SecureBoot.DB} {
		for _, sig := range l {
			if sig.testKey() {
				a.r.add(Contraindicated, CodeSBTestKey, 7, -1, "%s is a test key that must not ship (PKfail)", sig.ID())
			}
		}
	}
}
