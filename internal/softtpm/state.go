package softtpm

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/trusttree/trusttree/internal/durable"
)

// The state file: strict JSON, written durably before the response of the
// command that changed it.
const (
	stateFile    = "tpm.json"
	stateVersion = 2 // and 1, which knows neither sessions nor the locality of what is resumed
	maxStateSize = 4 << 20
)

type stateJSON struct {
	Version      int                    `json:"version"`
	Seeds        map[uint32][]byte      `json:"seeds"`
	Proofs       map[uint32][]byte      `json:"proofs"`
	Auths        map[uint32][]byte      `json:"auths,omitempty"`
	Policies     map[uint32]policyJSON  `json:"policies,omitempty"`
	Persistent   map[uint32]*objectJSON `json:"persistent,omitempty"`
	NV           []nvJSON               `json:"nv,omitempty"`
	MaxCount     uint64                 `json:"max_count"`
	ClockMs      uint64                 `json:"clock_ms"`
	ClockSafe    bool                   `json:"clock_safe"`
	ResetCount   uint32                 `json:"reset_count"`
	RestartCount uint32                 `json:"restart_count"`
	Shutdown     int                    `json:"shutdown"`
	Saved        *resumableJSON         `json:"saved,omitempty"`
	DAUsed       bool                   `json:"da_used,omitempty"`
	DisableClear bool                   `json:"disable_clear,omitempty"`
	DA           daJSON                 `json:"da"`
}

type policyJSON struct {
	Alg    uint16 `json:"alg"`
	Digest []byte `json:"digest"`
}

type daJSON struct {
	Failed          uint32 `json:"failed"`
	MaxTries        uint32 `json:"max_tries"`
	Recovery        uint32 `json:"recovery_s"`
	LockoutRecovery uint32 `json:"lockout_recovery_s"`
	LockoutEnabled  bool   `json:"lockout_enabled"`
}

type nvJSON struct {
	Handle  uint32 `json:"handle"`
	NameAlg uint16 `json:"name_alg"`
	Attrs   uint32 `json:"attrs"`
	Policy  []byte `json:"policy,omitempty"`
	Size    int    `json:"size"`
	Auth    []byte `json:"auth,omitempty"`
	Data    []byte `json:"data,omitempty"`
	Slot    ekSlot `json:"ek,omitempty"`
}

type resumableJSON struct {
	PCRs         map[uint16][][]byte `json:"pcrs"`
	Updates      uint32              `json:"updates"`
	PlatformAuth []byte              `json:"platform_auth,omitempty"`
	NullSeed     []byte              `json:"null_seed"`
	NullProof    []byte              `json:"null_proof"`
	Contexts     uint64              `json:"contexts"`
	Enabled      map[uint32]bool     `json:"enabled"`
	Locality3    bool                `json:"locality_3,omitempty"`
	Sessions     map[uint32]uint64   `json:"sessions,omitempty"`
}

type objectJSON struct {
	Public    []byte        `json:"public,omitempty"`
	Sensitive []byte        `json:"sensitive,omitempty"`
	Hierarchy uint32        `json:"hierarchy"`
	QName     []byte        `json:"qualified_name,omitempty"`
	Primary   bool          `json:"primary,omitempty"`
	External  bool          `json:"external,omitempty"`
	STClear   bool          `json:"st_clear,omitempty"`
	Sequence  *sequenceJSON `json:"sequence,omitempty"`
}

type sequenceJSON struct {
	Auth []byte   `json:"auth,omitempty"`
	Alg  uint16   `json:"alg"`
	Head []byte   `json:"head"`
	Sums [][]byte `json:"sums"`
}

// savable says whether the state of a sequence can leave the TPM: an HMAC's
// can't.
func (s *sequence) savable() bool { return !s.isHMAC }

func (o *object) json() *objectJSON {
	j := &objectJSON{Hierarchy: o.hier, QName: o.qname, Primary: o.primary, External: o.external, STClear: o.stClear}
	if o.seq == nil {
		j.Public = o.pub.bytes()
		if o.sens != nil {
			j.Sensitive = o.sens.bytes(0)
		}
		return j
	}
	j.Sequence = &sequenceJSON{Auth: o.seq.auth, Alg: o.seq.alg, Head: o.seq.head}
	for _, h := range o.seq.sums {
		m, ok := h.(encoding.BinaryMarshaler)
		if !ok {
			return j
		}
		b, err := m.MarshalBinary()
		if err != nil {
			return j
		}
		j.Sequence.Sums = append(j.Sequence.Sums, b)
	}
	return j
}

func (j *objectJSON) object() (*object, bool) {
	o := &object{hier: j.Hierarchy, qname: j.QName, primary: j.Primary, external: j.External, stClear: j.STClear}
	if s := j.Sequence; s != nil {
		o.pub = &public{typ: algNull, attrs: attrUserWithAuth}
		o.seq = &sequence{auth: s.Auth, alg: s.Alg, head: s.Head}
		algs := banks[:]
		if s.Alg != algNull {
			algs = []uint16{s.Alg}
		}
		if len(s.Sums) != len(algs) {
			return nil, false
		}
		for i, alg := range algs {
			h := newHash(alg)
			if m, ok := h.(encoding.BinaryUnmarshaler); !ok || m.UnmarshalBinary(s.Sums[i]) != nil {
				return nil, false
			}
			o.seq.sums = append(o.seq.sums, h)
		}
		return o, true
	}
	r := &reader{b: j.Public}
	o.pub = r.public(true)
	if r.err != 0 || len(r.b) != 0 {
		return nil, false
	}
	o.name = o.pub.name()
	if len(j.Sensitive) > 0 {
		r := &reader{b: j.Sensitive}
		o.sens = r.sensitive()
		if r.err != 0 || len(r.b) != 0 {
			return nil, false
		}
	}
	return o, true
}

// state returns what is written down.
func (t *TPM) state() *stateJSON {
	n := &t.nonVolatile
	s := &stateJSON{
		Version: stateVersion, Seeds: n.seeds, Proofs: n.proofs, Auths: n.auths, MaxCount: n.maxCount, ClockMs: n.clockMs, ClockSafe: n.clockSafe,
		ResetCount: n.resetCount, RestartCount: n.restartCount, Shutdown: n.shutdown, DAUsed: n.daUsed, DisableClear: n.disableClear,
		DA:       daJSON{n.da.failed, n.da.maxTries, n.da.recovery, n.da.lockoutRecovery, n.da.lockoutEnabled},
		Policies: map[uint32]policyJSON{}, Persistent: map[uint32]*objectJSON{},
	}
	for h, p := range n.policies {
		s.Policies[h] = policyJSON{p.alg, p.digest}
	}
	for h, o := range n.persistent {
		s.Persistent[h] = o.json()
	}
	for _, h := range sortedKeys(n.nv) {
		i := n.nv[h]
		s.NV = append(s.NV, nvJSON{i.handle, i.nameAlg, i.attrs, i.policy, i.size, i.auth, i.data, i.slot})
	}
	if r := n.saved; r != nil {
		s.Saved = &resumableJSON{map[uint16][][]byte{}, r.pcrUpdates, r.platformAuth, r.nullSeed, r.nullProof, r.contexts, r.enabled, r.locality3, r.sessions}
		for alg, b := range r.pcrs {
			s.Saved.PCRs[alg] = b[:]
		}
	}
	return s
}

// save writes the state down, if it is kept in a directory.
func (t *TPM) save() error {
	t.dirty = false
	if t.cfg.Dir == "" {
		return nil
	}
	b, err := json.Marshal(t.state())
	if err != nil {
		return fmt.Errorf("softtpm: encode state: %w", err)
	}
	if err := durable.WriteFile(filepath.Join(t.cfg.Dir, stateFile), b, 0o600); err != nil {
		return fmt.Errorf("softtpm: %w", err)
	}
	return nil
}

// load reads the state from the directory; false says that there is none.
func (t *TPM) load() (bool, error) {
	if t.cfg.Dir == "" {
		return false, nil
	}
	if err := durable.MkdirAll(t.cfg.Dir, 0o700); err != nil {
		return false, fmt.Errorf("softtpm: %w", err)
	}
	if err := durable.Clean(t.cfg.Dir); err != nil {
		return false, fmt.Errorf("softtpm: %w", err)
	}
	name := filepath.Join(t.cfg.Dir, stateFile)
	fi, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("softtpm: %w", err)
	}
	if fi.Size() > maxStateSize {
		return false, fmt.Errorf("softtpm: %s has %d bytes, limit %d", name, fi.Size(), maxStateSize)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return false, fmt.Errorf("softtpm: %w", err)
	}
	if err := t.restore(b); err != nil {
		return false, fmt.Errorf("softtpm: %s: %w", name, err)
	}
	return true, nil
}

var errState = errors.New("state is damaged or not a TPM's; delete the directory to make a new TPM")

func (t *TPM) restore(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var s stateJSON
	if err := d.Decode(&s); err != nil {
		return fmt.Errorf("%w: %w", errState, err)
	}
	if d.More() {
		return fmt.Errorf("%w: data after the end", errState)
	}
	if s.Version != stateVersion && s.Version != stateVersion-1 {
		return fmt.Errorf("%w: version %d, this program reads %d and %d", errState, s.Version, stateVersion-1, stateVersion)
	}
	for _, h := range []uint32{rhOwner, rhEndorsement, rhPlatform} {
		if len(s.Seeds[h]) != 64 || len(s.Proofs[h]) != 64 {
			return fmt.Errorf("%w: seeds", errState)
		}
	}
	n := nonVolatile{
		seeds: s.Seeds, proofs: s.Proofs, auths: s.Auths, policies: map[uint32]authPolicy{}, persistent: map[uint32]*object{},
		nv: map[uint32]*nvIndex{}, maxCount: s.MaxCount, clockMs: s.ClockMs, clockSafe: s.ClockSafe, resetCount: s.ResetCount, restartCount: s.RestartCount,
		shutdown: s.Shutdown, daUsed: s.DAUsed, disableClear: s.DisableClear,
		da: lockout{s.DA.Failed, s.DA.MaxTries, s.DA.Recovery, s.DA.LockoutRecovery, s.DA.LockoutEnabled},
	}
	if n.auths == nil {
		n.auths = map[uint32][]byte{}
	}
	for h, p := range s.Policies {
		n.policies[h] = authPolicy{p.Alg, p.Digest}
	}
	for h, j := range s.Persistent {
		if j == nil || handleType(h) != htPersistent {
			return fmt.Errorf("%w: persistent object 0x%08x", errState, h)
		}
		o, ok := j.object()
		if !ok || o.seq != nil {
			return fmt.Errorf("%w: persistent object 0x%08x", errState, h)
		}
		n.persistent[h] = o
	}
	for _, j := range s.NV {
		if handleType(j.Handle) != htNV || hashOf(j.NameAlg) == 0 || j.Size < 0 || j.Size > maxNVIndex ||
			j.Attrs&nvWritten != 0 && len(j.Data) != j.Size {
			return fmt.Errorf("%w: NV index 0x%08x", errState, j.Handle)
		}
		n.nv[j.Handle] = &nvIndex{j.Handle, j.NameAlg, j.Attrs, j.Policy, j.Size, j.Auth, j.Data, j.Slot}
	}
	if r := s.Saved; r != nil {
		n.saved = &resumable{map[uint16]*[pcrCount][]byte{}, r.Updates, r.PlatformAuth, r.NullSeed, r.NullProof, r.Contexts, r.Enabled, r.Locality3, r.Sessions}
		for _, alg := range banks {
			if len(r.PCRs[alg]) != pcrCount {
				return fmt.Errorf("%w: PCRs", errState)
			}
			n.saved.pcrs[alg] = (*[pcrCount][]byte)(r.PCRs[alg])
			for _, v := range r.PCRs[alg] {
				if len(v) != hashSize(alg) {
					return fmt.Errorf("%w: PCRs", errState)
				}
			}
		}
		if r.Enabled == nil {
			return fmt.Errorf("%w: hierarchies", errState)
		}
	}
	t.nonVolatile = n
	return nil
}

// marshal and the functions below serve saved contexts, which never leave the
// process in the clear.
func (o *object) marshal() []byte {
	b, err := json.Marshal(o.json())
	if err != nil {
		return nil
	}
	return b
}

func unmarshalObject(b []byte) (*object, bool) {
	var j objectJSON
	if json.Unmarshal(b, &j) != nil {
		return nil, false
	}
	return j.object()
}

// sessionJSON mirrors session.
type sessionJSON struct {
	Handle                             uint32
	Kind                               byte
	Alg                                uint16
	Sym                                [3]uint16
	Key, NonceTPM, Bind                []byte
	Bound, DABound, LockoutBound       bool
	Started, Epoch                     uint64
	Audit                              []byte
	Digest                             []byte
	Timeout                            uint64
	CC                                 uint32
	PCRSet                             bool
	PCRUpdates                         uint32
	Locality                           byte
	CpHash, NameHash, TemplateHash     []byte
	NeedAuth, NeedPassword, PP, NVTest bool
	NVWritten                          bool
}

func (s *session) marshal() []byte {
	p := &s.policy
	j := sessionJSON{
		s.handle, s.kind, s.alg, [3]uint16{s.sym.alg, s.sym.bits, s.sym.mode}, s.key, s.nonceTPM, s.bind, s.bound, s.daBound,
		s.lockoutBound, s.started, s.epoch, s.audit, p.digest, p.timeout, p.cc, p.pcrSet, p.pcrUpdates, p.locality, p.cpHash, p.nameHash,
		p.templateHash, p.needAuth, p.needPassword, p.pp, p.nvWritten != nil, p.nvWritten != nil && *p.nvWritten,
	}
	b, err := json.Marshal(j)
	if err != nil {
		return nil
	}
	return b
}

func unmarshalSession(b []byte) (*session, bool) {
	var j sessionJSON
	if json.Unmarshal(b, &j) != nil {
		return nil, false
	}
	s := &session{
		handle: j.Handle, kind: j.Kind, alg: j.Alg, sym: symDef{j.Sym[0], j.Sym[1], j.Sym[2]}, key: j.Key, nonceTPM: j.NonceTPM,
		bind: j.Bind, bound: j.Bound, daBound: j.DABound, lockoutBound: j.LockoutBound, started: j.Started, epoch: j.Epoch, audit: j.Audit,
		policy: policyState{
			digest: j.Digest, timeout: j.Timeout, cc: j.CC, pcrSet: j.PCRSet, pcrUpdates: j.PCRUpdates, locality: j.Locality,
			cpHash: j.CpHash, nameHash: j.NameHash, templateHash: j.TemplateHash, needAuth: j.NeedAuth,
			needPassword: j.NeedPassword, pp: j.PP,
		},
	}
	if j.NVTest {
		s.policy.nvWritten = &j.NVWritten
	}
	return s, true
}
