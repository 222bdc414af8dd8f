package tlsconn

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// addrClass is what an address is good for as a destination.
type addrClass int

const (
	// classNever addresses are reached only by a rule that names exactly this
	// address (a /32 or /128).
	classNever addrClass = iota
	// classPrivate addresses are reached only by a rule that names a prefix.
	classPrivate
	classPublic
)

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

// classify says what an address is good for, and why. IPv4 addresses inside of
// IPv6 ones are taken out in all their forms. Sources: IANA special-purpose
// registries (RFC 6890 and updates), and the clouds' metadata addresses.
func classify(a netip.Addr) (addrClass, string) {
	if !a.IsValid() || a.Zone() != "" {
		return classNever, "not an address"
	}
	if a.Is4() {
		return classify4(a)
	}
	b := a.As16()
	v4 := func(i int) netip.Addr { return netip.AddrFrom4([4]byte(b[i : i+4])) }
	embedded := func(in netip.Addr, form string) (addrClass, string) {
		c, why := classify4(in)
		return c, form + " of " + in.String() + " (" + why + ")"
	}
	switch {
	case a.Is4In6():
		return embedded(v4(12), "IPv4-mapped form")
	case netip.MustParsePrefix("64:ff9b::/96").Contains(a):
		return embedded(v4(12), "NAT64 form")
	case netip.MustParsePrefix("2002::/16").Contains(a):
		return embedded(v4(2), "6to4 form")
	case b[10] == 0x5e && b[11] == 0xfe && b[8]&^3 == 0 && b[9] == 0:
		if c, why := classify4(v4(12)); c != classPublic {
			return c, "ISATAP form of " + v4(12).String() + " (" + why + ")"
		}
	}
	for _, s := range v6Special {
		if s.prefix.Contains(a) {
			return s.class, s.why
		}
	}
	if !netip.MustParsePrefix("2000::/3").Contains(a) {
		return classNever, "outside of the global unicast space"
	}
	return classPublic, "public"
}

type special struct {
	prefix netip.Prefix
	class  addrClass
	why    string
}

func never(why string, list ...string) (out []special) {
	for _, p := range prefixes(list...) {
		out = append(out, special{p, classNever, why})
	}
	return out
}

func private(why string, list ...string) (out []special) {
	for _, p := range prefixes(list...) {
		out = append(out, special{p, classPrivate, why})
	}
	return out
}

func concat(lists ...[]special) (out []special) {
	for _, l := range lists {
		out = append(out, l...)
	}
	return out
}

var v4Special = concat(
	never("cloud metadata", "169.254.169.254/32", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32"),
	never("this network", "0.0.0.0/8"),
	never("loopback", "127.0.0.0/8"),
	never("link-local", "169.254.0.0/16"),
	never("IETF protocol assignment", "192.0.0.0/24"),
	never("documentation", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"),
	never("AS112", "192.31.196.0/24", "192.175.48.0/24"),
	never("AMT", "192.52.193.0/24"),
	never("6to4 relay anycast", "192.88.99.0/24"),
	never("benchmarking", "198.18.0.0/15"),
	never("multicast", "224.0.0.0/4"),
	never("reserved or broadcast", "240.0.0.0/4"),
	private("private network", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
	private("carrier-grade NAT", "100.64.0.0/10"),
)

var v6Special = concat(
	never("cloud metadata", "fd00:ec2::254/128", "fd20:ce::254/128"),
	never("unspecified, loopback or IPv4-compatible", "::/96"),
	never("IPv4-translated", "::ffff:0:0:0/96"),
	never("local NAT64", "64:ff9b:1::/48"),
	never("discard", "100::/64", "100:0:0:1::/64"),
	never("IETF protocol assignment or Teredo", "2001::/23"),
	never("documentation", "2001:db8::/32", "3fff::/20"),
	never("AS112", "2620:4f:8000::/48"),
	never("segment routing", "5f00::/16"),
	never("link-local", "fe80::/10"),
	never("site-local", "fec0::/10"),
	never("multicast", "ff00::/8"),
	private("unique local", "fc00::/7"),
)

func classify4(a netip.Addr) (addrClass, string) {
	for _, s := range v4Special {
		if s.prefix.Contains(a) {
			return s.class, s.why
		}
	}
	return classPublic, "public"
}

// dialTimeout bounds one attempt to reach a destination.
const dialTimeout = 10 * time.Second

// literalDialer dials addresses only and checks, in the hook between socket()
// and connect(), that the kernel is asked for exactly the address that was
// decided on.
func literalDialer(source netip.Addr) func(context.Context, string, netip.AddrPort) (net.Conn, error) {
	return func(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
		d := net.Dialer{Timeout: dialTimeout, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			got, err := netip.ParseAddrPort(address)
			if err != nil || got != netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port()) && got != dst {
				return fmt.Errorf("%w: socket would connect to %s instead of %s", ErrDenied, address, dst)
			}
			return nil
		}}
		if source.IsValid() {
			if network == "udp" {
				d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
			} else {
				d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
			}
		}
		return d.DialContext(ctx, network, dst.String())
	}
}
