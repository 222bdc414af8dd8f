package tlsconn

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Bounds of a policy document.
const (
	maxPolicyBytes = 1 << 20
	maxRules       = 4096
	policyVersion  = 1
)

// ParsePolicy reads a policy document: strict JSON of at most 1 MiB with
// version 1; unknown fields, unknown values and rules that could match more
// than they say are refused.
func ParsePolicy(data []byte) (*Policy, error) {
	if len(data) > maxPolicyBytes {
		return nil, errors.New("tlsconn: policy is larger than 1 MiB")
	}
	var p Policy
	if err := strictJSON(data, &p); err != nil {
		return nil, fmt.Errorf("tlsconn: policy: %w", err)
	}
	if _, err := p.compile(); err != nil {
		return nil, fmt.Errorf("tlsconn: %w", err)
	}
	return &p, nil
}

// strictJSON decodes exactly one JSON value without unknown fields.
func strictJSON(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("data after the end of the document")
	}
	return nil
}

// compile checks a policy and parses its patterns.
func (p *Policy) compile() (*compiledPolicy, error) {
	if p.Version != policyVersion {
		return nil, fmt.Errorf("policy: version %d, this program reads version %d", p.Version, policyVersion)
	}
	if len(p.Rules) > maxRules {
		return nil, fmt.Errorf("policy: %d rules, at most %d", len(p.Rules), maxRules)
	}
	c := &compiledPolicy{serial: p.Serial}
	names := map[string]bool{}
	for i, r := range p.Rules {
		if r.Name == "" || len(r.Name) > 128 || names[r.Name] {
			return nil, fmt.Errorf("policy: rule %d: a name of 1 to 128 bytes, used once, is required", i+1)
		}
		names[r.Name] = true
		cr, err := r.compile()
		if err != nil {
			return nil, fmt.Errorf("policy: rule %q: %w", r.Name, err)
		}
		c.rules = append(c.rules, cr)
	}
	return c, nil
}

func (r Rule) compile() (compiledRule, error) {
	c := compiledRule{Rule: r}
	switch r.Action {
	case Allow, Deny:
	case "":
		c.Action = Deny
	default:
		return c, fmt.Errorf("action %q: allow or deny", r.Action)
	}
	if r.Direction != ToCloud && r.Direction != ToNode {
		return c, fmt.Errorf("direction %q: to-cloud or to-node", r.Direction)
	}
	if r.Proto != TCP && r.Proto != UDP {
		return c, fmt.Errorf("proto %q: tcp or udp", r.Proto)
	}
	if len(r.Peers) == 0 {
		return c, errors.New("peers is empty, so the rule could never match")
	}
	if r.MaxFlows < 0 {
		return c, errors.New("max_flows is negative")
	}
	for _, s := range r.Peers {
		pat, err := parseIDPattern(s)
		if err != nil {
			return c, err
		}
		c.peers = append(c.peers, pat)
	}
	return c, c.compileTargets()
}

func (c *compiledRule) compileTargets() error {
	r := c.Rule
	if len(r.Services)+len(r.Hosts)+len(r.CIDRs) == 0 {
		return errors.New("one of services, hosts and cidrs is required")
	}
	if len(r.Hosts)+len(r.CIDRs) > 0 && len(r.Ports) == 0 {
		return errors.New("hosts and cidrs need ports")
	}
	for _, s := range r.Services {
		if err := checkHost(s); err != nil || strings.Contains(s, ".") {
			return fmt.Errorf("service %q: a service is one label of a-z, 0-9 and '-'", s)
		}
	}
	for _, list := range [][]string{r.Hosts, r.SNI, r.HTTPHosts} {
		for _, h := range list {
			if err := checkHost(strings.TrimPrefix(h, "*.")); err != nil {
				return fmt.Errorf("host %q: %w", h, err)
			}
		}
	}
	for _, h := range r.Hosts {
		if !strings.Contains(strings.TrimPrefix(h, "*."), ".") {
			return fmt.Errorf("host %q: a DNS name has two labels or more; a service goes into services", h)
		}
	}
	for _, p := range r.CIDRs {
		if !p.IsValid() || p != p.Masked() {
			return fmt.Errorf("cidr %s: bits beyond the prefix are set", p)
		}
		if p.Addr().Is4In6() {
			return fmt.Errorf("cidr %s: write IPv4 prefixes as IPv4", p)
		}
	}
	for _, s := range r.Ports {
		pr, err := parsePorts(s)
		if err != nil {
			return err
		}
		c.ports = append(c.ports, pr)
	}
	return nil
}

func parsePorts(s string) (portRange, error) {
	lo, hi, ranged := strings.Cut(s, "-")
	if !ranged {
		hi = lo
	}
	a, err1 := strconv.ParseUint(lo, 10, 16)
	b, err2 := strconv.ParseUint(hi, 10, 16)
	if err1 != nil || err2 != nil || a == 0 || a > b {
		return portRange{}, fmt.Errorf("port %q: a port, or a range low-high, of 1 to 65535", s)
	}
	return portRange{uint16(a), uint16(b)}, nil
}
