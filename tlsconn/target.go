package tlsconn

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// target is where a flow wants to go, in one of three forms: a service that the
// far end serves itself (a single label: "ingest"), a DNS name (two labels or
// more), or an address.
type target struct {
	proto string
	host  string // as given, lower case
	addr  netip.Addr
	port  uint16
}

// service returns the name of the service asked for, or the empty string.
func (t target) service() string {
	if t.addr.IsValid() || strings.Contains(t.host, ".") {
		return ""
	}
	return t.host
}

func (t target) String() string {
	if t.service() != "" {
		return t.proto + "!" + t.host
	}
	return t.proto + "!" + net.JoinHostPort(t.host, strconv.Itoa(int(t.port)))
}

// parseTarget takes a network and an address as DialContext gets them.
func parseTarget(network, address string) (target, error) {
	var proto string
	switch network {
	case "tcp":
		proto = TCP
	case "udp":
		proto = UDP
	default:
		return target{}, fmt.Errorf("network %q: only tcp and udp pass a tunnel", network)
	}
	host, port := address, ""
	if strings.Contains(address, ":") {
		var err error
		if host, port, err = net.SplitHostPort(address); err != nil {
			return target{}, fmt.Errorf("address %.300q: %w", address, err)
		}
	}
	var n uint64
	if port != "" {
		var err error
		if n, err = strconv.ParseUint(port, 10, 16); err != nil || n == 0 || port[0] == '+' || port[0] == '0' {
			return target{}, fmt.Errorf("address %.300q: port must be 1 to 65535", address)
		}
	}
	return newTarget(proto, host, uint16(n))
}

// newTarget checks a target by the strict host syntax: what one parser might
// read as a name and another as an address is neither here.
func newTarget(proto string, host string, port uint16) (target, error) {
	if proto != TCP && proto != UDP {
		return target{}, fmt.Errorf("protocol %.20q: only tcp and udp pass a tunnel", proto)
	}
	t := target{proto: proto, host: strings.ToLower(host), port: port}
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" {
			return target{}, fmt.Errorf("address %s: zones are refused", a)
		}
		if port == 0 {
			return target{}, fmt.Errorf("address %s: port is missing", a)
		}
		t.addr, t.host = a, a.String()
		return t, nil
	}
	if err := checkHost(t.host); err != nil {
		return target{}, fmt.Errorf("host %.300q: %w", host, err)
	}
	if t.service() == "" && port == 0 {
		return target{}, fmt.Errorf("host %.300q: port is missing", host)
	}
	return t, nil
}

// checkHost accepts lower-case LDH names (RFC 1123 2.1) of at most 253 bytes
// whose last label is not a number in any base.
func checkHost(h string) error {
	if h == "" || len(h) > 253 {
		return errors.New("a name has 1 to 253 bytes")
	}
	last := ""
	for label := range strings.SplitSeq(h, ".") {
		switch {
		case label == "" || len(label) > 63:
			return errors.New("labels have 1 to 63 bytes")
		case label[0] == '-' || label[len(label)-1] == '-':
			return errors.New("labels do not begin or end with '-'")
		}
		for i := range len(label) {
			if c := label[i]; !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
				return errors.New("names hold letters, digits and '-' only")
			}
		}
		last = label
	}
	hex, isHex := strings.CutPrefix(last, "0x")
	if strings.Trim(last, "0123456789") == "" || isHex && strings.Trim(hex, "0123456789abcdef") == "" {
		return errors.New("looks like a number, which some read as an address")
	}
	return nil
}
