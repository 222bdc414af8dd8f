// Package confine stops code on a node that goes round the tunnel: NFTables
// generates kernel rules that let only the tunnel's own connections out, and
// Process takes from this very process the right to connect anywhere else
// (Landlock, Linux 6.7).
//
// The kernel rules hold for every process of the node, whatever its user, and
// drop what is not named: the gateways, the name and time servers, loopback and
// what neighbour discovery needs. Packets are not forwarded at all.
package confine

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Rules say what may leave the node. The zero value lets nothing out.
type Rules struct {
	Gateways []netip.AddrPort // TCP
	DNS      []netip.Addr     // UDP and TCP port 53
	NTP      []netip.Addr     // UDP port 123
	// UID is the user that may reach the gateways; nil means any.
	UID *uint32
	// SSHFrom lets these networks reach port 22 of the node, for bring-up.
	SSHFrom []netip.Prefix
}

// table is the name of the generated table; loading replaces it as a whole.
const table = "trusttree"

// NFTables returns an nftables script that replaces the table "inet trusttree"
// in one transaction: nft -f. Connections that were open before and are not
// named lose their packets too.
func NFTables(r Rules) ([]byte, error) {
	var b bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("table inet %s", table)
	line("delete table inet %s", table)
	line("table inet %s {", table)
	line("  chain output {")
	line("    type filter hook output priority filter; policy drop;")
	line("    oifname \"lo\" accept")
	uid := ""
	if r.UID != nil {
		uid = fmt.Sprintf("meta skuid %d ", *r.UID)
	}
	for _, g := range r.Gateways {
		a := g.Addr().Unmap()
		if !a.IsValid() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || g.Port() == 0 {
			return nil, fmt.Errorf("confine: gateway %s is not a unicast address and port", g)
		}
		line("    %s%s daddr %s tcp dport %d accept", uid, family(a), a, g.Port())
	}
	for _, s := range []struct {
		name  string
		addrs []netip.Addr
		proto string
		port  int
	}{{"DNS", r.DNS, "udp", 53}, {"DNS", r.DNS, "tcp", 53}, {"NTP", r.NTP, "udp", 123}} {
		for _, a := range s.addrs {
			if a = a.Unmap(); !a.IsValid() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
				return nil, fmt.Errorf("confine: %s server %s is not a unicast address", s.name, a)
			}
			line("    %s daddr %s %s dport %d accept", family(a), a, s.proto, s.port)
		}
	}
	line("    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } accept")
	for _, p := range r.SSHFrom {
		if !p.IsValid() || p != p.Masked() || p.Bits() == 0 {
			return nil, fmt.Errorf("confine: SSH from %s: give a prefix of at least one bit", p)
		}
		line("    %s daddr %s tcp sport 22 ct state established accept", family(p.Addr()), p)
	}
	line("    limit rate 10/minute log prefix \"trusttree-egress \"")
	line("    counter drop")
	line("  }")
	line("  chain forward {")
	line("    type filter hook forward priority filter; policy drop;")
	line("  }")
	line("}")
	return b.Bytes(), nil
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "ip"
	}
	return "ip6"
}

// ErrUnsupported says that this kernel cannot confine a process's connections.
var ErrUnsupported = errors.New("confine: Landlock with network rules (Linux 6.7) is not available")

// Process takes from this process, for ever and for all that it starts, the
// right to connect TCP to any port but these. Addresses are NFTables' business.
// With no port nothing may be connected to. It fails with ErrUnsupported where
// the kernel cannot; it never succeeds without effect.
func Process(ports ...uint16) error {
	if slices.Contains(ports, 0) {
		return errors.New("confine: port 0")
	}
	return process(ports)
}
