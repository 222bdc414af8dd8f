package secureboot

import (
	"crypto"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/trusttree/trusttree/secureboot/eventlog"
)

// LearnOptions says what Learn makes of good boots. The zero value is usable
// but for NotAfter.
type LearnOptions struct {
	Name     string
	Serial   uint64
	NotAfter time.Time // required

	// Replay and Ignore are the policy's lists. When both are nil, Replay is
	// 1, 5 and 13 (settings, partitions and modules differ from node to node)
	// and Ignore is 15, 16 and 23. All other PCRs that were extended are
	// required.
	Replay, Ignore []int

	// PinPCR7 takes PCR 7 as it was. Otherwise it is judged by rules: the keys
	// of db and the rest may not grow, dbx may.
	PinPCR7 bool

	InsecureSHA1    bool // learn from the SHA-1 bank
	SHA1PaddedBank  bool // see IMAPolicy.SHA1PaddedBank
	InsecureNoSB    bool // learn from a boot in which Secure Boot was not enforcing
	MaxFailedBoots  int  // Policy.MaxFailedAttempts
	WithoutIMAFiles bool // replay PCR 10, do not judge its files
}

// learnGroups are the PCRs that change together: a variant of a component
// covers all PCRs of its group.
var learnGroups = []struct {
	name string
	pcrs []int
}{
	{"firmware", []int{0, 1, 2, 3, 5, 6}},
	{"keys", []int{7}},
	{"system", []int{4, 8, 9, 11, 12, 14}},
	{"other", []int{10, 13, 15, 17, 18, 19, 20, 21, 22}},
}

// Learn makes a policy of one or more boots that are known to be good. Their
// evidence must verify, be of one bank, and (unless InsecureNoSB) have Secure
// Boot enforcing. Several boots become variants of components.
func Learn(opts LearnOptions, boots ...Evidence) (*Policy, error) {
	if len(boots) == 0 {
		return nil, errors.New("secureboot: learn: no boot given")
	}
	if opts.Replay == nil && opts.Ignore == nil {
		opts.Replay, opts.Ignore = []int{1, 5, 13}, []int{15, 16, 23}
	}
	p := &Policy{Name: opts.Name, Serial: opts.Serial, NotAfter: opts.NotAfter, Bank: boots[0].Bank, InsecureSHA1: opts.InsecureSHA1,
		Replay: opts.Replay, Ignore: opts.Ignore, MaxFailedAttempts: opts.MaxFailedBoots, SecureBoot: &SecureBootPolicy{Enforcing: !opts.InsecureNoSB}}
	if p.NotAfter.IsZero() {
		return nil, errors.New("secureboot: learn: NotAfter is not set")
	}
	var verified []*eventlog.Verified
	for i, ev := range boots {
		v, err := p.learnBoot(ev, opts, i == 0)
		if err != nil {
			return nil, fmt.Errorf("secureboot: learn: boot %d: %w", i, err)
		}
		verified = append(verified, v)
	}
	for _, g := range learnGroups {
		c := Component{Name: g.name}
		any := false
		for _, v := range verified {
			records := []Record{}
			for _, pcr := range g.pcrs {
				if slices.Contains(p.Require, pcr) && !(pcr == 7 && !opts.PinPCR7) && !(pcr == pcrIMA && p.IMA != nil) {
					records = append(records, p.learnRecords(v, pcr)...)
				}
			}
			any = any || len(records) > 0
			c.addVariant(records)
		}
		if any {
			p.Components = append(p.Components, c)
		}
	}
	slices.Sort(p.Require)
	if err := p.validate(); err != nil {
		return nil, fmt.Errorf("secureboot: learn: %w", err)
	}
	return p, nil
}

// learnRecords are the events of one PCR; in PCR 4 without failed attempts,
// which count and are no reference.
func (p *Policy) learnRecords(v *eventlog.Verified, pcr int) []Record {
	a := appraisal{p: p, v: v}
	var rs []Record
	for _, d := range a.digests(pcr) {
		rs = append(rs, Record{PCR: pcr, Digests: []Digest{{v.Bank(), slices.Clone(d)}}})
	}
	return rs
}

func (c *Component) addVariant(records []Record) {
	for _, v := range c.Variants {
		if slices.EqualFunc(v.Records, records, func(a, b Record) bool {
			return a.PCR == b.PCR && slices.Equal(a.Digests[0].Value, b.Digests[0].Value)
		}) {
			return
		}
	}
	c.Variants = append(c.Variants, Variant{Name: fmt.Sprintf("boot %d", len(c.Variants)), Records: records})
}

// learnBoot verifies one boot and takes over its keys, files and PCRs.
func (p *Policy) learnBoot(ev Evidence, opts LearnOptions, first bool) (*eventlog.Verified, error) {
	if ev.Bank != p.Bank {
		return nil, errors.New("boots are of different banks")
	}
	if ev.Bank == crypto.SHA1 && !opts.InsecureSHA1 {
		return nil, errors.New("SHA-1 is not allowed")
	}
	hasIMA := len(ev.IMALog) > 0
	if !first && (p.IMA != nil) != hasIMA {
		return nil, errors.New("some boots have an IMA log, others not")
	}
	probe := appraisal{p: p, ev: &ev, r: &Result{PCRs: map[int]PCRStatus{}}}
	values := make(map[int][]byte)
	for pcr, v := range ev.PCRs {
		if !slices.Contains(p.Ignore, pcr) && !(pcr == pcrIMA && hasIMA) {
			values[pcr] = v
		}
	}
	if !probe.verify(values) {
		return nil, probe.r.Err()
	}
	s := SecureBootState(probe.v)
	if on, why := s.Enforcing(); !on && !opts.InsecureNoSB {
		return nil, fmt.Errorf("in it, Secure Boot was not enforcing: %v", why)
	}
	if _, ok := ev.PCRs[7]; !ok && opts.InsecureNoSB && first {
		p.SecureBoot = nil // no UEFI: there is nothing to judge
	}
	if p.SecureBoot != nil {
		p.learnKeys(s, first)
	}
	if hasIMA {
		if err := p.learnIMA(ev, opts); err != nil {
			return nil, err
		}
	}
	for pcr := range values {
		if probe.v.Len(pcr) > 0 && !slices.Contains(p.Replay, pcr) && !slices.Contains(p.Require, pcr) {
			p.Require = append(p.Require, pcr)
		}
	}
	return probe.v, nil
}

func (p *Policy) learnIMA(ev Evidence, opts LearnOptions) error {
	if opts.WithoutIMAFiles {
		p.IMA = &IMAPolicy{IgnoreFileNames: true, SHA1PaddedBank: opts.SHA1PaddedBank}
	} else {
		if p.IMA == nil {
			p.IMA = &IMAPolicy{Files: make(map[string][]string), SHA1PaddedBank: opts.SHA1PaddedBank}
		}
		if err := learnIMA(ev, p.IMA); err != nil {
			return err
		}
	}
	if !slices.Contains(p.Require, pcrIMA) {
		p.Require = append(p.Require, pcrIMA)
	}
	return nil
}

func (p *Policy) learnKeys(s *State, first bool) {
	add := func(to *[]string, sigs []Signature) {
		for _, sig := range sigs {
			if id := sig.ID(); !slices.Contains(*to, id) {
				*to = append(*to, id)
			}
		}
	}
	sb := p.SecureBoot
	add(&sb.PK, s.PK)
	add(&sb.KEK, s.KEK)
	add(&sb.DB, s.DB)
	var dbx []string
	add(&dbx, s.DBX)
	if first {
		sb.DBXAtLeast = dbx
	} else { // what all boots had
		sb.DBXAtLeast = slices.DeleteFunc(sb.DBXAtLeast, func(id string) bool { return !slices.Contains(dbx, id) })
	}
	for _, a := range s.Authorities {
		if id := a.ID(); !slices.Contains(sb.Authorities, id) {
			sb.Authorities = append(sb.Authorities, id)
		}
	}
}
