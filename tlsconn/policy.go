package tlsconn

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// Action is what a matching rule does. The zero value denies.
type Action string

// Direction is the way in which a flow was opened.
type Direction string

// The words of policies, records and limits.
const (
	Deny  Action = "deny" // outranks allow, whatever the order of rules
	Allow Action = "allow"

	ToCloud Direction = "to-cloud" // a node opened it
	ToNode  Direction = "to-node"  // the cloud opened it

	AtNode    Side = "node"
	AtGateway Side = "gateway"

	TCP = "tcp" // protocols
	UDP = "udp"

	VerdictAllowed = "allowed"
	VerdictDenied  = "denied"
	VerdictReport  = "report" // let pass by a rule on trial

	Unlimited = -1 // takes a bound of Limits off
)

// Policy says which flows may pass. What no rule allows is denied, so the zero
// value denies everything. Both ends evaluate their own copy.
type Policy struct {
	Version int    `json:"version"` // of the format: 1
	Serial  uint64 `json:"serial"`  // of this policy; only rises
	Rules   []Rule `json:"rules"`
}

// Rule matches a flow when every field that is set matches; lists match when
// one entry does. Peers, Direction, Proto and one of Services, Hosts and CIDRs
// are required; Ports too, with Hosts or CIDRs.
type Rule struct {
	Name      string    `json:"name"`
	Action    Action    `json:"action"`
	Peers     []string  `json:"peers"` // the node's ID; see AllowIDs for patterns
	Direction Direction `json:"direction"`
	Proto     string    `json:"proto"`
	// Services are names without a dot, which the far end serves itself. They
	// are never resolved.
	Services []string `json:"services,omitempty"`
	// Hosts are DNS names; "*.example.org" matches one label more. What they
	// resolve to must be public, or within CIDRs when these are given.
	Hosts []string `json:"hosts,omitempty"`
	// CIDRs allow literal addresses (without Hosts) or bound what Hosts resolve
	// to. Private networks need one; loopback, link-local, metadata and other
	// special addresses need a /32 or /128 that names exactly them.
	CIDRs []netip.Prefix `json:"cidrs,omitempty"`
	// Ports are single ports or ranges, "443" or "8000-8010". UDP ports that
	// amplify (53, 123, 1900 and the like) must be named singly.
	Ports []string `json:"ports,omitempty"`
	// SNI, ALPN and HTTPHosts must match what the flow's first bytes say: the
	// ClientHello (one that hides its name by ECH has none), or every HTTP/1
	// request of the connection. HTTP/2 without TLS, CONNECT and Upgrade match no
	// allow rule with HTTPHosts. A server that speaks first cannot be reached so.
	// Deny rules match also when the bytes hide what is asked for.
	SNI       []string `json:"sni,omitempty"`
	ALPN      []string `json:"alpn,omitempty"`
	HTTPHosts []string `json:"http_hosts,omitempty"`
	// Report makes the rule a trial: the flow goes the way it would go without
	// enforcement (an allow rule lets it pass, a deny rule does not stop it),
	// and its record says that it was reported.
	Report bool `json:"report,omitempty"`
	// MaxFlows is the most flows under this rule at once per node; 0 is no
	// bound beyond Limits.
	MaxFlows int `json:"max_flows,omitempty"`
}

// Flow is what a policy is asked about.
type Flow struct {
	Node      ID
	Direction Direction
	Proto     string
	Service   string // set, or Host is
	Host      string // name or literal address
	Port      uint16
	// Addr is the address to dial, invalid while the name is not resolved.
	Addr netip.Addr
	// Inspected says that SNI, ALPN and HTTPHost are known, or known to be absent.
	Inspected bool
	SNI       string
	ALPN      []string
	HTTPHost  string

	hides string // the protocol whose names the bytes hide, if any
}

const (
	hidesTLS  = "tls"  // an encrypted or broken ClientHello
	hidesHTTP = "http" // HTTP/2, or what could be read in two ways
)

// Decision is a policy's answer with its reason. The zero value denies.
type Decision struct {
	Allowed bool
	Rule    string // the rule that decided; empty when none allowed the flow
	Reason  string
	Report  bool // decided by a rule on trial
	// Inspect says that the answer holds so far, and that the flow's first
	// bytes decide.
	Inspect  bool
	MaxFlows int
	Serial   uint64

	http bool // HTTP hosts had a say, so every request has to be looked at
}

// compiledRule is a rule with its patterns parsed.
type compiledRule struct {
	Rule
	peers []idPattern
	ports []portRange
}

type portRange struct{ lo, hi uint16 }

// Evaluate decides about a flow. It is pure, and denies when the policy is not
// valid. What the flow does not say yet (Addr, or the first bytes) is taken as
// matching, so callers ask again when they know.
func (p *Policy) Evaluate(f Flow) Decision {
	c, err := p.compile()
	if err != nil {
		return Decision{Reason: err.Error()}
	}
	return c.evaluate(f)
}

type compiledPolicy struct {
	serial uint64
	rules  []compiledRule
}

func (c *compiledPolicy) evaluate(f Flow) Decision {
	var report *compiledRule
	inspect, guard := false, false
	for i := range c.rules {
		r := &c.rules[i]
		if r.Action != Deny {
			continue
		}
		if len(r.HTTPHosts) > 0 && f.HTTPHost != "" && r.matchTarget(f, false) {
			guard = true
		}
		if !r.match(f, false) {
			continue
		}
		if r.needsInspection() && !f.Inspected {
			inspect = true
			continue
		}
		if r.Report {
			report = r
			continue
		}
		return Decision{Rule: r.Name, Reason: "a deny rule matches", Serial: c.serial}
	}
	why := "no rule allows it"
	for i := range c.rules {
		r := &c.rules[i]
		if r.Action != Allow || !r.match(f, true) {
			continue
		}
		if ok, reason := r.allowsAddr(f); !ok {
			why = fmt.Sprintf("rule %q does not reach %s: %s", r.Name, f.Addr, reason)
			continue
		}
		d := Decision{Allowed: true, Rule: r.Name, Report: r.Report || report != nil, MaxFlows: r.MaxFlows, Serial: c.serial,
			Inspect: inspect || r.needsInspection() && !f.Inspected, http: guard || len(r.HTTPHosts) > 0}
		if report != nil {
			d.Reason = fmt.Sprintf("deny rule %q is on trial", report.Name)
		}
		return d
	}
	return Decision{Reason: why, Serial: c.serial}
}

func (r *compiledRule) needsInspection() bool {
	return len(r.SNI)+len(r.ALPN)+len(r.HTTPHosts) > 0
}

// match compares all but the addresses' classes. Deny rules match addresses
// only when these are known; allow rules wait for them.
func (r *compiledRule) match(f Flow, allow bool) bool {
	return r.matchTarget(f, allow) && (!f.Inspected || r.matchContent(f, allow))
}

func (r *compiledRule) matchTarget(f Flow, allow bool) bool {
	if f.Proto != r.Proto || f.Direction != r.Direction || !slices.ContainsFunc(r.peers, func(p idPattern) bool { return p.match(f.Node) }) {
		return false
	}
	if f.Service != "" {
		return slices.Contains(r.Services, f.Service)
	}
	single := allow && f.Proto == UDP && slices.Contains(amplifiers, f.Port)
	if !slices.ContainsFunc(r.ports, func(p portRange) bool { return f.Port >= p.lo && f.Port <= p.hi && (!single || p.lo == p.hi) }) {
		return false
	}
	lit, err := netip.ParseAddr(f.Host)
	literal := err == nil
	switch {
	case len(r.Hosts) > 0:
		if literal || !matchHost(r.Hosts, f.Host) {
			return false
		}
	case len(r.CIDRs) == 0:
		return false // a rule for services only
	case allow && !literal:
		return false // raw CIDRs admit literal addresses only
	}
	addr := f.Addr
	if literal && !addr.IsValid() {
		addr = lit
	}
	if len(r.CIDRs) > 0 {
		if !addr.IsValid() {
			if !allow {
				return false
			}
		} else if !containsAddr(r.CIDRs, addr) {
			return false
		}
	}
	return true
}

// matchContent compares what the first bytes say. To an allow rule, what they
// hide is no match; to a deny rule it is one, so that hiding a name is no way
// round it.
func (r *compiledRule) matchContent(f Flow, allow bool) bool {
	hides := func(protocol string) bool { return !allow && f.hides == protocol }
	if len(r.SNI) > 0 && !matchHost(r.SNI, f.SNI) && !hides(hidesTLS) {
		return false
	}
	if len(r.HTTPHosts) > 0 && !matchHost(r.HTTPHosts, f.HTTPHost) && !hides(hidesHTTP) {
		return false
	}
	if len(r.ALPN) == 0 {
		return true
	}
	if !allow {
		return hides(hidesTLS) || slices.ContainsFunc(f.ALPN, func(a string) bool { return slices.Contains(r.ALPN, a) })
	}
	// Every protocol that the client offers must be allowed: the server picks.
	return len(f.ALPN) > 0 && !slices.ContainsFunc(f.ALPN, func(a string) bool { return !slices.Contains(r.ALPN, a) })
}

// allowsAddr applies the address classes to the address that will be dialled.
func (r *compiledRule) allowsAddr(f Flow) (bool, string) {
	addr := f.Addr
	if f.Service != "" {
		return true, ""
	}
	if lit, err := netip.ParseAddr(f.Host); err == nil && !addr.IsValid() {
		addr = lit
	}
	if !addr.IsValid() {
		return true, "" // asked again once resolved
	}
	class, why := classify(addr)
	switch class {
	case classPublic:
		return true, ""
	case classPrivate:
		return containsAddr(r.CIDRs, addr), why + "; a rule must name its prefix"
	}
	exact := slices.ContainsFunc(r.CIDRs, func(p netip.Prefix) bool { return p.IsSingleIP() && p.Addr() == addr })
	return exact, why + "; a rule must name exactly this address"
}

// containsAddr compares literally: an IPv4 prefix does not contain the IPv6
// forms of its addresses.
func containsAddr(ps []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
}

func matchHost(patterns []string, host string) bool {
	for _, p := range patterns {
		if p == host && host != "" {
			return true
		}
		if suffix, ok := strings.CutPrefix(p, "*."); ok {
			label, rest, dot := strings.Cut(host, ".")
			if dot && label != "" && rest == suffix {
				return true
			}
		}
	}
	return false
}

// PolicyStore holds the policy in force. Set replaces it for new flows and
// re-evaluates every live one at once. Safe for concurrent use; clients and
// gateways may share one.
type PolicyStore struct {
	changes notifier
	mu      sync.RWMutex
	policy  *Policy
	c       *compiledPolicy
}

// NewPolicyStore returns a store that holds p. A nil p denies everything.
func NewPolicyStore(p *Policy) (*PolicyStore, error) {
	s := &PolicyStore{c: &compiledPolicy{}}
	if p == nil {
		return s, nil
	}
	return s, s.Set(p)
}

// Set puts a policy in force. A policy that is not valid, or whose serial is
// lower than the present one's, is refused and the present one stays.
func (s *PolicyStore) Set(p *Policy) error {
	c, err := p.compile()
	if err != nil {
		return fmt.Errorf("tlsconn: %w", err)
	}
	s.mu.Lock()
	if inForce := s.c.serial; p.Serial < inForce {
		s.mu.Unlock()
		return fmt.Errorf("tlsconn: policy serial %d is older than %d, which is in force; raise the serial to go back", p.Serial, inForce)
	}
	cp := *p
	s.policy, s.c = &cp, c
	s.mu.Unlock()
	s.changes.notify()
	return nil
}

// Policy returns a copy of the policy in force.
func (s *PolicyStore) Policy() Policy {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.policy == nil {
		return Policy{Version: 1}
	}
	p := *s.policy
	p.Rules = slices.Clone(p.Rules)
	return p
}

// Evaluate decides about a flow by the policy in force, as Policy.Evaluate.
func (s *PolicyStore) Evaluate(f Flow) Decision { return s.current().evaluate(f) }

func (s *PolicyStore) current() *compiledPolicy {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.c
}
