package secureboot

import (
	"bytes"
	"crypto"
	"fmt"

	"github.com/trusttree/trusttree/secureboot/eventlog"
)

// Tristate is an answer that may not be known.
type Tristate int

// Unknown is the zero value: nothing is concluded from missing evidence.
const (
	Unknown Tristate = iota
	No
	Yes
)

// String returns "unknown", "no" or "yes".
func (t Tristate) String() string { return [...]string{"unknown", "no", "yes"}[min(max(t, 0), 2)] }

// Mode is the Secure Boot mode (UEFI 2.10 section 32.3).
type Mode int

// Modes. ModeUnknown is the zero value.
const (
	ModeUnknown  Mode = iota
	ModeSetup         // no platform key: anybody may enrol keys
	ModeAudit         // images are recorded, none is refused
	ModeUser          // a platform key is enrolled
	ModeDeployed      // user mode, and not to be left from the operating system
)

// String returns the mode's name.
func (m Mode) String() string {
	return [...]string{"unknown", "setup", "audit", "user", "deployed"}[min(max(m, 0), 4)]
}

// State is what a verified log says about Secure Boot. All of it is bound to
// PCR 4 and PCR 7 by digests, but for DevicePathHint.
type State struct {
	Mode        Mode
	Enabled     Tristate // the SecureBoot variable, not more: see Enforcing
	PK, KEK     []Signature
	DB, DBX     []Signature
	Authorities []Authority // in the order of their first use; firmware names each once
	Images      []Image     // what PCR 4 says was started, in order
	Shim        ShimState

	FailedAttempts  int  // boot options that returned to the firmware
	AttemptsOmitted bool // the firmware left out boot attempts
	UEFIDebugger    bool // "UEFI Debug Mode" was measured
	DMAUnprotected  bool // "DMA Protection Disabled" was measured
	FirmwareError   bool // an error separator

	findings []Finding // structural reasons against the facts above
	complete bool      // PCR 4 and PCR 7 are covered, with one separator each
}

// Authority is what vouched for an image: an entry of db, or of shim's lists.
type Authority struct {
	Variable  string // "db", "Shim", "MokListRT", "SbatLevel", …
	Signature Signature
	Shim      bool // shim, not the firmware, measured it
	raw       []byte
	num       int
}

// ID names the authority in a policy: variable, ":" and the signature's ID.
func (a Authority) ID() string { return a.Variable + ":" + a.Signature.ID() }

// Image is an image that the firmware or shim measured before it ran it.
type Image struct {
	Digest         []byte // Authenticode, in the verified bank
	PreOS          bool   // before the separator: part of the firmware
	DevicePathHint string // printable; nothing vouches for it
}

// ShimState is what shim measured about itself.
type ShimState struct {
	Present            bool
	SBATLevel          string // the revocation level in force, as shim measured it
	MOKTrusted         bool   // MokListTrusted: the kernel trusts machine owner keys
	ValidationDisabled bool   // MokSBState: shim starts anything
}

// SecureBootState reads the facts about Secure Boot out of a verified log. It
// never fails: what can't be concluded is unknown, and the reasons are among
// the findings of Enforcing.
func SecureBootState(v *eventlog.Verified) *State {
	s := &State{}
	s.readPCR7(v)
	s.readPCR4(v)
	s.readPCR14(v)
	return s
}

// maxFindings bounds the findings of one State or Result: what a hostile log
// can make the verifier say. The status counts those left out.
const maxFindings = 128

func (s *State) finding(code Code, pcr, event int, format string, args ...any) {
	if len(s.findings) >= maxFindings {
		return
	}
	s.findings = append(s.findings, Finding{Code: code, Severity: Contraindicated, PCR: pcr, Event: event, Detail: fmt.Sprintf(format, args...)})
}

var (
	guidGlobal   = guid("8be4df61-93ca-11d2-aa0d-00e098032b8c")
	guidSecurity = guid("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
	guidShim     = guid("605dab50-e046-4300-abb6-3dd810dd8b23")
)

// readPCR7 walks over PCR 7. Digests and what they bind decide; types don't.
func (s *State) readPCR7(v *eventlog.Verified) {
	if !v.Covers(7) {
		s.finding(CodeSBUnknown, 7, -1, "PCR 7 is not quoted")
		return
	}
	var seps int
	seen := make(map[string]bool, 8)
	enabled, certain := No, true // a SecureBoot variable that was not measured is off
	for e := range v.Events(7) {
		if val, ok := e.Separator(); ok {
			if seps++; val == 1 {
				s.FirmwareError = true
			}
			continue
		}
		data, binding := e.Fact()
		if binding != eventlog.BindingData {
			code := CodeSBUnknownEvent
			if binding == eventlog.BindingNone { // PFP has no such event in PCR 7: the log was changed
				code = CodeLogUnbound
			}
			s.finding(code, 7, e.Num, "digest of something that the log does not hold (%s)", e.Claimed().Type)
			certain = certain && seps > 0
			continue
		}
		variable, ok := eventlog.ParseVariable(data)
		if !ok || len(variable.Rest) > 8 || len(variable.Rest) > 0 && variable.GUID != guidShim {
			s.action7(e, data)
			continue
		}
		key := variable.Name + string(variable.GUID[:])
		if seps > 0 {
			// Whoever runs after shim can extend more: the first word counts.
			switch variable.Name {
			case "SbatLevel", "MokSBState", "MokListTrusted":
				if key = "shim " + key; seen[key] {
					s.finding(CodeSBUnknownEvent, 7, e.Num, "shim's %q is measured twice: the second is not believed", variable.Name)
					continue
				}
				seen[key] = true
			}
			s.authority(e, variable)
			continue
		}
		if seen[key] {
			s.finding(CodeSBUnknownEvent, 7, e.Num, "variable %q is measured twice", variable.Name)
			certain = false
			continue
		}
		seen[key] = true
		if !s.config(e, variable, &enabled) {
			s.finding(CodeSBUnknownEvent, 7, e.Num, "unknown variable %q before the separator", variable.Name)
		}
	}
	if seps != 1 {
		certain = false
	}
	if certain && v.Len(7) > 0 {
		s.Enabled = enabled
		s.complete = true
	}
	s.modes(seen)
}

// config reads a variable from before the separator, matched by GUID and name.
func (s *State) config(e eventlog.VerifiedEvent, v eventlog.Variable, enabled *Tristate) bool {
	var list *[]Signature
	switch {
	case v.GUID == guidGlobal && v.Name == "SecureBoot":
		switch {
		case len(v.Data) == 0 || len(v.Data) == 1 && v.Data[0] == 0:
			*enabled = No
		case len(v.Data) == 1 && v.Data[0] == 1:
			*enabled = Yes
		default:
			*enabled = Unknown
			s.finding(CodeSBUnknown, 7, e.Num, "SecureBoot variable is %x", v.Data[:min(len(v.Data), 8)])
		}
		return true
	case v.GUID == guidGlobal && v.Name == "AuditMode":
		if len(v.Data) == 1 && v.Data[0] == 1 {
			s.Mode = ModeAudit
		}
		return true
	case v.GUID == guidGlobal && v.Name == "DeployedMode":
		if len(v.Data) == 1 && v.Data[0] == 1 && s.Mode == ModeUnknown {
			s.Mode = ModeDeployed
		}
		return true
	case v.GUID == guidGlobal && v.Name == "PK":
		list = &s.PK
	case v.GUID == guidGlobal && v.Name == "KEK":
		list = &s.KEK
	case v.GUID == guidSecurity && v.Name == "db":
		list = &s.DB
	case v.GUID == guidSecurity && v.Name == "dbx":
		list = &s.DBX
	case v.GUID == guidSecurity && (v.Name == "dbt" || v.Name == "dbr"):
		if len(v.Data) == 0 {
			return true
		}
		return false
	default:
		return false
	}
	sigs, err := parseSignatures(v.Data)
	if err != nil {
		s.finding(CodeSBDatabase, 7, e.Num, "%s: %v", v.Name, err)
	}
	*list = sigs
	return true
}

func (s *State) modes(seen map[string]bool) {
	switch {
	case !s.complete || !seen["PK"+string(guidGlobal[:])]:
		s.Mode = ModeUnknown
	case len(s.PK) == 0:
		s.Mode = ModeSetup
	case s.Mode == ModeUnknown:
		s.Mode = ModeUser
	}
}

// action7 reads an action string in PCR 7 (PFP section 10.4.3).
func (s *State) action7(e eventlog.VerifiedEvent, data []byte) {
	switch string(bytes.TrimRight(data, "\x00")) {
	case "UEFI Debug Mode":
		s.UEFIDebugger = true
	case "DMA Protection Disabled":
		s.DMAUnprotected = true
	default:
		s.finding(CodeSBUnknownEvent, 7, e.Num, "event of %d bytes that is no variable", len(data))
	}
}

// maxAuthorities bounds the authorities of one boot: firmware and shim name each
// once.
const maxAuthorities = 256

// authority reads an event from after the separator.
func (s *State) authority(e eventlog.VerifiedEvent, v eventlog.Variable) {
	if len(s.Authorities) == maxAuthorities {
		s.finding(CodeSBUnknownEvent, 7, e.Num, "more than %d authorities", maxAuthorities)
		return
	}
	a := Authority{Variable: v.Name, Shim: v.GUID == guidShim, raw: v.Data, num: e.Num}
	switch {
	case a.Shim && v.Name == "SbatLevel":
		s.Shim.Present, s.Shim.SBATLevel = true, string(v.Data)
	case a.Shim && v.Name == "MokSBState":
		s.Shim.Present = true
		s.Shim.ValidationDisabled = s.Shim.ValidationDisabled || !bytes.Equal(v.Data, []byte{0})
	case a.Shim && v.Name == "MokListTrusted":
		s.Shim.Present, s.Shim.MOKTrusted = true, bytes.Equal(v.Data, []byte{1})
	case a.Shim && v.Name != "db":
		s.Shim.Present = true
	case v.GUID != guidSecurity || v.Name != "db":
		s.finding(CodeSBUnknownEvent, 7, e.Num, "variable %q after the separator", v.Name)
		return
	}
	a.Signature = authoritySignature(v)
	s.Authorities = append(s.Authorities, a)
}

// Strings of PCR 4 (PFP section 10.4.3), by digest.
const (
	callingApp   = "Calling EFI Application from Boot Option"
	returningApp = "Returning from EFI Application from Boot Option"
	omitted      = "BOOT ATTEMPTS OMITTED"
)

// readPCR4 lists the images. What is no known string is an image.
func (s *State) readPCR4(v *eventlog.Verified) {
	if !v.Covers(4) {
		s.complete = false
		return
	}
	d := stringDigests(v.Bank())
	var seps int
	for e := range v.Events(4) {
		if val, ok := e.Separator(); ok {
			if seps++; val == 1 {
				s.FirmwareError = true
			}
			continue
		}
		switch {
		case bytes.Equal(e.Digest, d.calling):
		case bytes.Equal(e.Digest, d.returning):
			s.FailedAttempts++
		case bytes.Equal(e.Digest, d.omitted):
			s.AttemptsOmitted = true
		default:
			if data, b := e.Fact(); b == eventlog.BindingData && bytes.HasPrefix(data, []byte("Booting to ")) {
				continue
			}
			im := Image{Digest: e.Digest, PreOS: seps == 0}
			if len(s.Images) < maxFindings {
				im.DevicePathHint = e.Claimed().Hint()
			}
			s.Images = append(s.Images, im)
		}
	}
	if seps != 1 {
		s.complete = false
	}
}

// readPCR14 looks for MokSBState, whose name is only a hint: believed when it
// speaks against the boot.
func (s *State) readPCR14(v *eventlog.Verified) {
	for e := range v.Events(14) {
		if bytes.HasPrefix(e.Claimed().Data, []byte("MokSBState")) && !e.IsDigestOf([]byte{0}) {
			s.Shim.Present, s.Shim.ValidationDisabled = true, true
		}
	}
}

type digestsOf struct{ calling, returning, omitted []byte }

func stringDigests(bank crypto.Hash) digestsOf {
	return digestsOf{hashOf(bank, callingApp), hashOf(bank, returningApp), hashOf(bank, omitted)}
}

func hashOf(h crypto.Hash, s string) []byte {
	w := h.New()
	w.Write([]byte(s))
	return w.Sum(nil)
}

// Enforcing reports whether Secure Boot decided what ran: it was on, with a
// platform key, nothing switched it off behind the variable's back, something
// was authenticated and something was measured. The findings say why not.
func (s *State) Enforcing() (bool, []Finding) {
	t := &State{}
	for _, f := range s.findings {
		if f.Code != CodeSBUnknownEvent { // an event more: for the policy to judge
			t.findings = append(t.findings, f)
		}
	}
	switch {
	case s.Enabled == Unknown:
		t.finding(CodeSBUnknown, 7, -1, "the log does not say whether Secure Boot is on")
	case s.Enabled == No:
		t.finding(CodeSBDisabled, 7, -1, "Secure Boot is off")
	}
	switch s.Mode {
	case ModeUnknown:
		t.finding(CodeSBUnknown, 7, -1, "the platform key was not measured")
	case ModeSetup:
		t.finding(CodeSBSetupMode, 7, -1, "no platform key is enrolled: setup mode")
	case ModeAudit:
		t.finding(CodeSBAuditMode, 7, -1, "audit mode: no image is refused")
	}
	if !s.complete {
		t.finding(CodeSBUnknown, 4, -1, "PCR 4 and PCR 7 are not both quoted with one separator each")
	}
	if s.UEFIDebugger {
		t.finding(CodeSBDebugMode, 7, -1, "a UEFI debugger may have changed anything")
	}
	if s.FirmwareError {
		t.finding(CodeLogFirmwareError, 7, -1, "the firmware reported an error")
	}
	if s.Shim.ValidationDisabled {
		t.finding(CodeSBShimValidation, 7, -1, "shim's validation is switched off (MokSBState)")
	}
	t.authorities(s)
	return len(t.findings) == 0, t.findings
}

// authorities checks who vouched for what ran.
func (t *State) authorities(s *State) {
	if !containsFunc(s.Authorities, func(a Authority) bool { return !a.Shim }) {
		t.finding(CodeSBNothingAuthenticated, 7, -1, "no image was authenticated by db")
	}
	if !containsFunc(s.Images, func(i Image) bool { return !i.PreOS }) {
		t.finding(CodeSBNothingMeasured, 4, -1, "no image was measured after the separator")
	}
	for _, a := range s.Authorities {
		if !a.Shim && !containsFunc(s.DB, a.Signature.same) {
			t.finding(CodeSBAuthorityUnknown, 7, a.num, "authority %s is not in db", a.ID())
		}
		if revoked(a.Signature, s.DBX) {
			t.finding(CodeSBRevoked, 7, a.num, "authority %s is in dbx", a.ID())
		}
	}
	for _, i := range s.Images {
		if containsFunc(s.DBX, func(x Signature) bool { return x.isHash() && bytes.Equal(x.Data, i.Digest) }) {
			t.finding(CodeSBRevoked, 4, -1, "image %x is in dbx", i.Digest)
		}
	}
}

func containsFunc[T any](s []T, f func(T) bool) bool {
	for _, e := range s {
		if f(e) {
			return true
		}
	}
	return false
}
