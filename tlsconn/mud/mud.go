// Package mud reads and writes Manufacturer Usage Descriptions (RFC 8520) with
// their access lists (RFC 8519), so that a city's switch, the node and the
// cloud enforce one statement. Start with Import and Export.
//
// Import never widens: an entry that a policy cannot say exactly is refused, as
// are deny entries and unknown fields.
package mud

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/trusttree/trusttree/tlsconn"
)

// maxBytes bounds a MUD file.
const maxBytes = 1 << 20

type file struct {
	MUD  description `json:"ietf-mud:mud"`
	ACLs struct {
		ACL []acl `json:"acl"`
	} `json:"ietf-access-control-list:acls"`
}

type description struct {
	Version      int      `json:"mud-version"`
	URL          string   `json:"mud-url"`
	LastUpdate   string   `json:"last-update"`
	Signature    string   `json:"mud-signature,omitempty"`
	Validity     int      `json:"cache-validity,omitempty"`
	Supported    bool     `json:"is-supported"`
	SystemInfo   string   `json:"systeminfo,omitempty"`
	Manufacturer string   `json:"mfg-name,omitempty"`
	Model        string   `json:"model-name,omitempty"`
	Firmware     string   `json:"firmware-rev,omitempty"`
	Software     string   `json:"software-rev,omitempty"`
	Docs         string   `json:"documentation,omitempty"`
	Extensions   []string `json:"extensions,omitempty"`
	From         lists    `json:"from-device-policy"`
	To           lists    `json:"to-device-policy"`
}

type lists struct {
	Lists struct {
		List []struct {
			Name string `json:"name"`
		} `json:"access-list"`
	} `json:"access-lists"`
}

type acl struct {
	Name string `json:"name"`
	Type string `json:"type"`
	ACEs struct {
		ACE []ace `json:"ace"`
	} `json:"aces"`
}

type ace struct {
	Name    string  `json:"name"`
	Matches matches `json:"matches"`
	Actions struct {
		Forwarding string `json:"forwarding"`
	} `json:"actions"`
}

type matches struct {
	IPv4 *ip `json:"ipv4,omitempty"`
	IPv6 *ip `json:"ipv6,omitempty"`
	TCP  *l4 `json:"tcp,omitempty"`
	UDP  *l4 `json:"udp,omitempty"`
}

type ip struct {
	Protocol int    `json:"protocol,omitempty"`
	DstName  string `json:"ietf-acldns:dst-dnsname,omitempty"`
	SrcName  string `json:"ietf-acldns:src-dnsname,omitempty"`
	Dst4     string `json:"destination-ipv4-network,omitempty"`
	Src4     string `json:"source-ipv4-network,omitempty"`
	Dst6     string `json:"destination-ipv6-network,omitempty"`
	Src6     string `json:"source-ipv6-network,omitempty"`
}

type l4 struct {
	Initiated string    `json:"ietf-mud:direction-initiated,omitempty"`
	Dst       *portSpec `json:"destination-port,omitempty"`
	Src       *portSpec `json:"source-port,omitempty"`
}

type portSpec struct {
	Operator string `json:"operator,omitempty"`
	Port     int    `json:"port,omitempty"`
	Lower    int    `json:"lower-port,omitempty"`
	Upper    int    `json:"upper-port,omitempty"`
}

// Import reads a MUD file of at most 1 MiB as a policy for the nodes that the
// peer patterns name. The from-device lists become to-cloud rules. Entries of
// to-device lists that are the answers to these are left out, as a flow has
// both ways; others are refused. The caller has checked the file's signature.
func Import(data []byte, peers []string, serial uint64) (*tlsconn.Policy, error) {
	if len(data) > maxBytes {
		return nil, errors.New("mud: file is larger than 1 MiB")
	}
	var f file
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return nil, fmt.Errorf("mud: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("mud: data after the end of the file")
	}
	if f.MUD.Version != 1 {
		return nil, fmt.Errorf("mud: version %d, only 1 is known", f.MUD.Version)
	}
	if u, err := url.Parse(f.MUD.URL); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("mud: mud-url %q is not an https URL", f.MUD.URL)
	}
	if len(f.MUD.Extensions) > 0 {
		return nil, fmt.Errorf("mud: extensions %q are not known", f.MUD.Extensions)
	}
	byName := map[string]acl{}
	for _, a := range f.ACLs.ACL {
		if _, twice := byName[a.Name]; twice {
			return nil, fmt.Errorf("mud: access list %q is there twice", a.Name)
		}
		byName[a.Name] = a
	}
	p := &tlsconn.Policy{Version: 1, Serial: serial}
	for _, way := range []struct {
		l    lists
		from bool
	}{{f.MUD.From, true}, {f.MUD.To, false}} {
		for _, l := range way.l.Lists.List {
			a, ok := byName[l.Name]
			if !ok {
				return nil, fmt.Errorf("mud: access list %q is named but not there", l.Name)
			}
			for _, e := range a.ACEs.ACE {
				r, err := e.rule(a, way.from)
				if err != nil {
					return nil, fmt.Errorf("mud: list %q entry %q: %w", a.Name, e.Name, err)
				}
				if r != nil {
					r.Peers = peers
					p.Rules = append(p.Rules, *r)
				}
			}
		}
	}
	s, err := tlsconn.NewPolicyStore(p) // checks it
	if err != nil {
		return nil, fmt.Errorf("mud: %w", err)
	}
	out := s.Policy()
	return &out, nil
}

// rule turns an entry into a rule, or into nothing when it is about answers.
func (e ace) rule(a acl, from bool) (*tlsconn.Rule, error) {
	if e.Actions.Forwarding != "accept" {
		return nil, fmt.Errorf("forwarding %q: what is not accepted is denied anyway, exceptions cannot be said", e.Actions.Forwarding)
	}
	m := e.Matches
	net, t := m.IPv4, m.TCP
	if (m.IPv4 == nil) == (m.IPv6 == nil) || (m.TCP == nil) == (m.UDP == nil) {
		return nil, errors.New("needs exactly one of ipv4 and ipv6, and one of tcp and udp")
	}
	r := &tlsconn.Rule{Name: a.Name + "/" + e.Name, Action: tlsconn.Allow, Direction: tlsconn.ToCloud, Proto: tlsconn.TCP}
	number := 6
	if m.UDP != nil {
		r.Proto, t, number = tlsconn.UDP, m.UDP, 17
	}
	if m.IPv6 != nil {
		net = m.IPv6
	}
	if net.Protocol != 0 && net.Protocol != number {
		return nil, fmt.Errorf("protocol %d is not that of the port", net.Protocol)
	}
	if !from {
		if t.Initiated != "to-device" && t.Dst == nil {
			return nil, nil // answers to what the node opens
		}
		return nil, errors.New("flows to the device cannot be said by name or address; write a to-node rule for a service")
	}
	if t.Initiated == "to-device" || t.Src != nil || net.SrcName != "" || net.Src4 != "" || net.Src6 != "" {
		return nil, errors.New("from-device entries name destinations only")
	}
	if net.DstName == "" && net.Dst4 == "" && net.Dst6 == "" {
		return nil, errors.New("names no destination")
	}
	if net.DstName != "" {
		r.Hosts = []string{strings.ToLower(net.DstName)}
	}
	for _, s := range []string{net.Dst4, net.Dst6} {
		if s == "" {
			continue
		}
		pre, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, err
		}
		if pre.Addr().Is4() != (m.IPv4 != nil) || pre.Addr().Is4() != (s == net.Dst4) {
			return nil, fmt.Errorf("network %s is not of the entry's family", pre)
		}
		r.CIDRs = append(r.CIDRs, pre)
	}
	var err error
	r.Ports, err = t.Dst.ports()
	return r, err
}

func (p *portSpec) ports() ([]string, error) {
	switch {
	case p == nil:
		return nil, errors.New("names no destination port")
	case p.Operator == "eq" && p.Lower == 0 && p.Upper == 0:
		return []string{strconv.Itoa(p.Port)}, nil
	case p.Operator == "" && p.Port == 0 && p.Lower > 0:
		return []string{fmt.Sprintf("%d-%d", p.Lower, p.Upper)}, nil
	}
	return nil, fmt.Errorf("port operator %q: eq or a range", p.Operator)
}

// Options describe the device for Export.
type Options struct {
	URL        string // https, where the file will be published
	SystemInfo string // one line about the device
	LastUpdate time.Time
	Validity   time.Duration // whole hours, 1 to 168; 48 h when zero
}

// Export writes the to-cloud rules of a policy that name hosts or networks as a
// MUD file. Services travel inside the tunnel and are not a network's business:
// give the gateway as a host. A rule that a MUD file cannot say is an error.
func Export(p tlsconn.Policy, o Options) ([]byte, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("mud: URL %q is not an https URL", o.URL)
	}
	if o.Validity == 0 {
		o.Validity = 48 * time.Hour
	}
	if o.Validity%time.Hour != 0 || o.Validity < time.Hour || o.Validity > 168*time.Hour {
		return nil, fmt.Errorf("mud: validity %s is not 1 to 168 whole hours", o.Validity)
	}
	f := file{MUD: description{Version: 1, URL: o.URL, LastUpdate: o.LastUpdate.UTC().Format(time.RFC3339), Validity: int(o.Validity / time.Hour), Supported: true, SystemInfo: o.SystemInfo}}
	v4, v6 := acl{Name: "from-ipv4", Type: "ipv4-acl-type"}, acl{Name: "from-ipv6", Type: "ipv6-acl-type"}
	for _, r := range p.Rules {
		if r.Direction != tlsconn.ToCloud || len(r.Services) > 0 && len(r.Hosts)+len(r.CIDRs) == 0 {
			continue
		}
		if r.Action != tlsconn.Allow || r.Report || len(r.SNI)+len(r.ALPN)+len(r.HTTPHosts) > 0 || len(r.Hosts) > 0 && len(r.CIDRs) > 0 || strings.Contains(strings.Join(r.Hosts, ""), "*") {
			return nil, fmt.Errorf("mud: rule %q: a MUD file cannot say deny, report, wildcards, content, or hosts within networks", r.Name)
		}
		for i, port := range r.Ports {
			for j, h := range r.Hosts {
				name := fmt.Sprintf("%s-%d-%d", r.Name, i, j)
				v4.ACEs.ACE = append(v4.ACEs.ACE, entry(name, r.Proto, port, ip{DstName: h}, false))
				v6.ACEs.ACE = append(v6.ACEs.ACE, entry(name, r.Proto, port, ip{DstName: h}, true))
			}
			for j, c := range r.CIDRs {
				name := fmt.Sprintf("%s-%d-net%d", r.Name, i, j)
				if c.Addr().Is4() {
					v4.ACEs.ACE = append(v4.ACEs.ACE, entry(name, r.Proto, port, ip{Dst4: c.String()}, false))
				} else {
					v6.ACEs.ACE = append(v6.ACEs.ACE, entry(name, r.Proto, port, ip{Dst6: c.String()}, true))
				}
			}
		}
	}
	for _, a := range []acl{v4, v6} {
		if len(a.ACEs.ACE) > 0 {
			f.ACLs.ACL = append(f.ACLs.ACL, a)
			f.MUD.From.Lists.List = append(f.MUD.From.Lists.List, struct {
				Name string `json:"name"`
			}{a.Name})
		}
	}
	return json.MarshalIndent(f, "", "  ")
}

func entry(name, proto, port string, net ip, six bool) ace {
	e := ace{Name: name}
	e.Actions.Forwarding = "accept"
	spec := &portSpec{}
	if lo, hi, ranged := strings.Cut(port, "-"); ranged {
		spec.Lower, _ = strconv.Atoi(lo)
		spec.Upper, _ = strconv.Atoi(hi)
	} else {
		spec.Operator = "eq"
		spec.Port, _ = strconv.Atoi(port)
	}
	if proto == tlsconn.UDP {
		net.Protocol, e.Matches.UDP = 17, &l4{Dst: spec}
	} else {
		net.Protocol, e.Matches.TCP = 6, &l4{Initiated: "from-device", Dst: spec}
	}
	if six {
		e.Matches.IPv6 = &net
	} else {
		e.Matches.IPv4 = &net
	}
	return e
}
