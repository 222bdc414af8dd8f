package secureboot

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"slices"
	"strings"

	"github.com/trusttree/trusttree/secureboot/ima"
)

// ima judges PCR 10 and the files that it vouches for.
func (a *appraisal) ima() {
	p := a.p.IMA
	if p == nil {
		return
	}
	if len(a.ev.IMALog) == 0 && a.ev.IMAState == nil {
		a.r.add(Contraindicated, CodeIMAMissing, pcrIMA, -1, "the policy judges IMA, the evidence has no IMA log")
		return
	}
	v, err := a.verifyIMA()
	switch {
	case errors.Is(err, ima.ErrRebooted), errors.Is(err, errOtherPolicy):
		a.r.add(Contraindicated, CodeIMAState, pcrIMA, -1, "%v", err)
		return
	case errors.Is(err, ima.ErrBehind):
		a.r.add(Contraindicated, CodeIMABehind, pcrIMA, -1, "%v", err)
		return
	case err != nil:
		a.r.add(Contraindicated, CodeIMAMalformed, pcrIMA, -1, "%v", err)
		return
	}
	if _, ok := a.r.PCRs[pcrIMA]; ok && !slices.Contains(a.p.Ignore, pcrIMA) {
		a.r.PCRs[pcrIMA] = PCRStatus{Status: Affirming, Events: v.State.Entries, Detail: "reference"}
	}
	a.imaLog(p, v)
	a.imaFiles(p, v)
	if a.r.Status <= Affirming {
		a.r.IMA = &IMAState{State: v.State, Policy: a.p.title()}
		a.r.IMA.State.ResetCount, a.r.IMA.State.RestartCount = a.ev.ResetCount, a.ev.RestartCount
	}
}

// IMAState says how far an IMA log was verified and judged, and by which
// policy. Only an affirming Result has one. Keep it where the node can't write.
type IMAState struct {
	State  ima.State `json:"state"`
	Policy string    `json:"policy"` // Result.Policy: another policy, or serial, judges the whole log anew
}

var errOtherPolicy = errors.New("the IMA state is of another policy: send the whole log")

// verifyIMA verifies the log, or the tail that continues an earlier appraisal.
func (a *appraisal) verifyIMA() (*ima.Verified, error) {
	if s := a.ev.IMAState; s != nil {
		if s.Policy != a.p.title() || s.State.Bank != a.ev.Bank || s.State.Entries < 1 {
			return nil, errOtherPolicy
		}
		return ima.Resume(s.State, a.ev.IMALog, a.ev.PCRs, a.ev.ResetCount, a.ev.RestartCount, nil)
	}
	log, err := ima.Parse(a.ev.IMALog, nil)
	if err != nil {
		return nil, err
	}
	return log.Verify(a.ev.Bank, a.ev.PCRs)
}

// imaLog judges the log as a whole.
func (a *appraisal) imaLog(p *IMAPolicy, v *ima.Verified) {
	if v.Padded {
		sev := Contraindicated
		if p.SHA1PaddedBank {
			sev = Affirming
		} else if a.inspect {
			sev = Warning
		}
		a.r.add(sev, CodeIMAPaddedBank, pcrIMA, -1, "the kernel fills this bank with padded SHA-1 digests: SHA-1 strength")
	}
	if v.Violations > 0 {
		sev := Contraindicated
		if p.Violations {
			sev = Affirming
		}
		a.r.add(sev, CodeIMAViolation, pcrIMA, -1, "%d files were written while they were measured", v.Violations)
	}
	if v.Unverified > 0 {
		sev := Affirming
		if p.MaxUnverified > 0 && v.Unverified > p.MaxUnverified {
			sev = Contraindicated
		}
		a.r.add(sev, CodeIMAUnverified, pcrIMA, v.State.Entries, "%d entries follow the quote: not verified, not judged", v.Unverified)
	}
	if a.ev.IMAState != nil { // the first entry was judged when the state was made
		if v.Aggregates > 0 {
			a.r.add(Contraindicated, CodeIMABootAggregate, pcrIMA, -1, "another boot_aggregate entry: the kernel was replaced by kexec")
		}
		return
	}
	switch {
	case v.Aggregate == ima.AggregateMismatch:
		a.r.add(Contraindicated, CodeIMABootAggregate, pcrIMA, 0, "boot_aggregate is not the hash of this quote's PCRs 0 to 9")
	case v.Aggregate == ima.AggregateMissing:
		a.r.add(Contraindicated, CodeIMABootAggregate, pcrIMA, 0, "the first entry is no boot_aggregate")
	case v.Aggregates > 1:
		a.r.add(Contraindicated, CodeIMABootAggregate, pcrIMA, -1, "%d boot_aggregate entries: the kernel was replaced by kexec", v.Aggregates)
	case v.Aggregate == ima.AggregateUnchecked:
		sev := Warning
		if v.Padded && p.SHA1PaddedBank { // the kernel could not hash this bank: it took another one's
			sev = Affirming
		}
		a.r.add(sev, CodeIMABootAggregate, pcrIMA, 0, "boot_aggregate is over another bank, or PCRs 0 to 9 are not all quoted: not checked")
	}
}

// imaFiles compares every verified entry with what the policy allows.
func (a *appraisal) imaFiles(p *IMAPolicy, v *ima.Verified) {
	sev := Contraindicated
	if p.IgnoreFileNames {
		if a.inspect {
			return
		}
		sev = Affirming
	}
	keys := make([]crypto.PublicKey, 0, len(p.Keys))
	for _, der := range p.Keys {
		k, err := x509.ParsePKIXPublicKey(der)
		if err != nil {
			a.r.add(Contraindicated, CodePolicyReference, pcrIMA, -1, "IMA key of the policy: %v", err)
			return
		}
		keys = append(keys, k)
	}
	for e := range v.Entries() {
		switch {
		case e.Num == 0 && string(e.Name) == "boot_aggregate": // judged above
		case e.Violation: // counted above
		case !e.Known:
			a.r.add(Contraindicated, CodeIMATemplate, pcrIMA, e.Num, "template %.40q is not known", e.Template)
		case p.allows(e) || signedBy(e, keys):
		default:
			f := a.r.add(sev, CodeIMAFile, pcrIMA, e.Num, "%s is not allowed", e)
			f.Got = e.Digest
		}
	}
}

func (p *IMAPolicy) allows(e ima.Entry) bool {
	id := e.ID()
	return len(e.Digest) > 0 && (slices.Contains(p.Files[string(e.Name)], id) || slices.Contains(p.Files["*"], id))
}

// hashAlgos are the kernel's numbers (include/uapi/linux/hash_info.h).
var hashAlgos = map[byte]struct {
	name string
	hash crypto.Hash
}{4: {"sha256", crypto.SHA256}, 5: {"sha384", crypto.SHA384}, 6: {"sha512", crypto.SHA512}}

// signedBy reports whether one of the keys made the entry's IMA signature over
// its digest: EVM_IMA_XATTR_DIGSIG (3) version 2, or IMA_VERITY_DIGSIG (6)
// version 3, which signs a hash of type, algorithm and digest. SHA-1 signatures
// admit nothing.
func signedBy(e ima.Entry, keys []crypto.PublicKey) bool {
	s := e.Signature
	if len(keys) == 0 || len(s) < 9 || len(e.Digest) == 0 {
		return false
	}
	typ, version, alg := s[0], s[1], hashAlgos[s[2]]
	size := int(binary.BigEndian.Uint16(s[7:]))
	if alg.hash == 0 || size != len(s)-9 || len(e.Digest) != alg.hash.Size() {
		return false
	}
	digest := e.Digest
	switch {
	case typ == 3 && version == 2 && e.Alg == alg.name:
	case typ == 6 && version == 3 && e.Alg == "verity:"+alg.name:
		h := alg.hash.New()
		h.Write(append([]byte{6, s[2]}, e.Digest...))
		digest = h.Sum(nil)
	default:
		return false
	}
	return slices.ContainsFunc(keys, func(k crypto.PublicKey) bool {
		switch k := k.(type) {
		case *rsa.PublicKey:
			return rsa.VerifyPKCS1v15(k, alg.hash, digest, s[9:]) == nil
		case *ecdsa.PublicKey:
			return ecdsa.VerifyASN1(k, digest, s[9:])
		}
		return false
	})
}

// learnIMA makes an allow-list of a log's verified entries.
func learnIMA(ev Evidence, p *IMAPolicy) error {
	log, err := ima.Parse(ev.IMALog, nil)
	if err != nil {
		return err
	}
	v, err := log.Verify(ev.Bank, ev.PCRs)
	if err != nil {
		return err
	}
	if v.Violations > 0 || v.Aggregate == ima.AggregateMismatch || v.Aggregate == ima.AggregateMissing || v.Aggregates > 1 {
		return errors.New("IMA log has violations or no fitting boot_aggregate: no good boot")
	}
	for e := range v.Entries() {
		if e.Num == 0 {
			continue
		}
		if !e.Known || strings.Contains(e.ID(), " ") {
			return errors.New("IMA log has an entry of unknown template")
		}
		if name := string(e.Name); !slices.Contains(p.Files[name], e.ID()) {
			p.Files[name] = append(p.Files[name], e.ID())
		}
	}
	return nil
}
