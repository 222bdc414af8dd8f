package secureboot

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/trusttree/trusttree/secureboot/eventlog"
)

// Format of a policy. Readers accept this version and the one before it; there
// is none before 1.
const (
	policyVersion = 1
	maxPolicySize = 8 << 20 // bytes
)

// policyJSON is the wire form of Policy.
type policyJSON struct {
	Version           int               `json:"version"`
	Name              string            `json:"name"`
	Serial            uint64            `json:"serial"`
	NotAfter          time.Time         `json:"notAfter"`
	Bank              string            `json:"bank"`
	InsecureSHA1      bool              `json:"insecureSHA1,omitempty"`
	Require           []int             `json:"require"`
	Replay            []int             `json:"replay,omitempty"`
	Ignore            []int             `json:"ignore,omitempty"`
	Components        []Component       `json:"components"`
	SecureBoot        *SecureBootPolicy `json:"secureBoot,omitempty"`
	IMA               *IMAPolicy        `json:"ima,omitempty"`
	MaxFailedAttempts int               `json:"maxFailedAttempts,omitempty"`
}

// MarshalJSON implements json.Marshaler. It refuses a policy that would be
// refused when read.
func (p *Policy) MarshalJSON() ([]byte, error) {
	if err := p.validate(); err != nil {
		return nil, fmt.Errorf("secureboot: policy: %w", err)
	}
	return json.Marshal(policyJSON{policyVersion, p.Name, p.Serial, p.NotAfter, eventlog.HashName(p.Bank), p.InsecureSHA1,
		p.Require, p.Replay, p.Ignore, p.Components, p.SecureBoot, p.IMA, p.MaxFailedAttempts})
}

// ParsePolicy reads a policy from strict JSON: unknown and repeated fields, a
// version other than 1 and anything that Appraise would deny as a policy are
// refused. It does not look at the end of validity. The size limit is 8 MiB.
func ParsePolicy(b []byte) (*Policy, error) {
	if len(b) > maxPolicySize {
		return nil, fmt.Errorf("secureboot: policy of %d bytes, limit %d", len(b), maxPolicySize)
	}
	var j policyJSON
	if err := strictUnmarshal(b, &j); err != nil {
		return nil, fmt.Errorf("secureboot: policy: %w", err)
	}
	if j.Version != policyVersion {
		return nil, fmt.Errorf("secureboot: policy has version %d, want %d", j.Version, policyVersion)
	}
	p := &Policy{Name: j.Name, Serial: j.Serial, NotAfter: j.NotAfter, Bank: eventlog.HashByName(j.Bank), InsecureSHA1: j.InsecureSHA1,
		Require: j.Require, Replay: j.Replay, Ignore: j.Ignore, Components: j.Components, SecureBoot: j.SecureBoot, IMA: j.IMA,
		MaxFailedAttempts: j.MaxFailedAttempts}
	if p.NotAfter.IsZero() {
		return nil, errors.New("secureboot: policy has no notAfter")
	}
	if err := p.validate(); err != nil {
		return nil, fmt.Errorf("secureboot: policy: %w", err)
	}
	return p, nil
}

// rawName marks a file name that is written in hexadecimal, because JSON text
// can't hold its bytes.
const rawName = "hex:"

// MarshalJSON implements json.Marshaler. A file name that is no UTF-8, or that
// itself starts with "hex:", is written as "hex:" and its bytes in hexadecimal.
func (p *IMAPolicy) MarshalJSON() ([]byte, error) {
	type plain IMAPolicy
	q := plain(*p)
	if p.Files != nil {
		q.Files = make(map[string][]string, len(p.Files))
	}
	for name, ids := range p.Files {
		if !utf8.ValidString(name) || strings.HasPrefix(name, rawName) {
			name = rawName + hex.EncodeToString([]byte(name))
		}
		q.Files[name] = ids
	}
	return json.Marshal(q)
}

// UnmarshalJSON implements json.Unmarshaler: strictly, as ParsePolicy.
func (p *IMAPolicy) UnmarshalJSON(b []byte) error {
	type plain IMAPolicy
	var q plain
	if err := strictUnmarshal(b, &q); err != nil {
		return err
	}
	*p = IMAPolicy(q)
	if q.Files != nil {
		p.Files = make(map[string][]string, len(q.Files))
	}
	for name, ids := range q.Files {
		if h, ok := strings.CutPrefix(name, rawName); ok {
			raw, err := hex.DecodeString(h)
			if err != nil {
				return fmt.Errorf("file name %.40q is not hexadecimal", name)
			}
			name = string(raw)
		}
		p.Files[name] = append(p.Files[name], ids...)
	}
	return nil
}

// strictUnmarshal decodes one JSON value: unknown fields, repeated fields and
// bytes after it are errors.
func strictUnmarshal(b []byte, v any) error {
	if err := noRepeats(json.NewDecoder(bytes.NewReader(b))); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("bytes after the JSON value")
	}
	return nil
}

// maxDepth bounds the nesting of JSON.
const maxDepth = 32

// noRepeats walks over JSON and refuses an object that names a field twice, in
// whatever case: decoders disagree on which one counts. The keys of "files" are
// file names, to which case matters.
func noRepeats(dec *json.Decoder) error {
	type level struct {
		names map[string]bool // nil in an array
		key   bool            // a key comes next
		exact bool            // the keys are file names
	}
	last := ""
	var stack []level
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		top := len(stack) - 1
		switch d, _ := tok.(json.Delim); {
		case d == '{' || d == '[':
			if len(stack) == maxDepth {
				return errors.New("JSON is nested too deep")
			}
			if top >= 0 && stack[top].names != nil {
				stack[top].key = true
			}
			l := level{}
			if d == '{' {
				l = level{names: make(map[string]bool), key: true, exact: top >= 0 && stack[top].names != nil && !stack[top].exact && last == "files"}
			}
			stack = append(stack, l)
			continue
		case d == '}' || d == ']':
			stack = stack[:top]
			continue
		}
		if top < 0 || stack[top].names == nil {
			continue
		}
		if !stack[top].key {
			stack[top].key = true
			continue
		}
		name := tok.(string)
		if !stack[top].exact {
			last = name
			name = strings.ToLower(strings.ToUpper(name)) // upper first: encoding/json takes U+017F for an s
		}
		if stack[top].names[name] {
			return fmt.Errorf("field %.40q is repeated", name)
		}
		stack[top].names[name] = true
		stack[top].key = false
	}
}
