package tlsconn_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tlsconn"
)

// specialAddresses is the corpus: what egress proxies of the field let through
// or refuse, and must not be reached because a name points there.
var specialAddresses = []string{
	"0.0.0.0", "0.0.0.1", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.8.9.10", "168.63.129.16", "169.254.169.254", "172.16.0.1", "192.0.0.170", "192.0.0.192",
	"192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.9", "224.0.0.1", "240.0.0.1", "255.255.255.255",
	"::", "::1", "::127.0.0.1", "::a9fe:a9fe", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b:1::a00:1",
	"100::1", "2001::1", "2001:2::1", "2001:db8::1", "2002:a9fe:a9fe::1", "2002:7f00:1::1", "2001:470::5efe:a9fe:a9fe", "2001:470::200:5efe:a00:1",
	"3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fd12::1", "fe80::1", "fe80::5efe:a9fe:a9fe", "fec0::1", "ff02::1", "4000::1",
}

// recorder is a resolver and a dialer that remember what was asked of them.
type recorder struct {
	mu      sync.Mutex
	answers map[string][][]netip.Addr // each lookup takes the next, the last stays
	lookups []string
	dialled []netip.AddrPort
}

func (r *recorder) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lookups = append(r.lookups, host)
	a := r.answers[strings.TrimSuffix(host, ".")]
	if len(a) == 0 {
		return nil, errors.New("no such host")
	}
	if len(a) > 1 {
		r.answers[strings.TrimSuffix(host, ".")] = a[1:]
	}
	return a[0], nil
}

func (r *recorder) Dial(_ context.Context, _ string, a netip.AddrPort) (net.Conn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dialled = append(r.dialled, a)
	return nil, errors.New("recorded only")
}

func (r *recorder) seen() (lookups []string, dialled []netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lookups), slices.Clone(r.dialled)
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// egressRig lets the node ask for anything under *.example; only the gateway's
// address rules stand between.
func egressRig(t *testing.T, rec *recorder, more ...tlsconn.Rule) *rig {
	rules := append([]tlsconn.Rule{{Name: "partners", Action: tlsconn.Allow, Peers: []string{nodeName}, Direction: tlsconn.ToCloud, Proto: tlsconn.TCP,
		Hosts: []string{"*.partner.example"}, Ports: []string{"443"}}}, more...)
	open := append([]tlsconn.Rule{{Name: "captured", Action: tlsconn.Allow, Peers: []string{nodeName}, Direction: tlsconn.ToCloud, Proto: tlsconn.TCP,
		Hosts: []string{"*.partner.example"}, Ports: []string{"1-65535"}}}, more...)
	for i, s := range specialAddresses {
		a := netip.MustParseAddr(s)
		if a.Is4In6() {
			continue
		}
		open = append(open, tlsconn.Rule{Name: "captured " + string(rune('a'+i)), Action: tlsconn.Allow, Peers: []string{nodeName}, Direction: tlsconn.ToCloud, Proto: tlsconn.TCP,
			CIDRs: []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}, Ports: []string{"1-65535"}})
	}
	unlimited := tlsconn.Limits{FlowsPerSecond: tlsconn.Unlimited, Destinations: tlsconn.Unlimited}
	return newRig(t, nil, func(r *rig) {
		r.clientC.Policy, r.gatewayC.Policy = store(t, open...), store(t, rules...)
		r.clientC.Limits, r.gatewayC.Limits = unlimited, unlimited
		r.gatewayC.Resolver, r.gatewayC.Dial = rec, rec.Dial
	})
}

func (r *rig) refused(address string) *tlsconn.RefusedError {
	r.tb.Helper()
	c, err := r.client.DialContext(r.ctx(), "tcp", address)
	var re *tlsconn.RefusedError
	if !assert.ErrorAs(r.tb, err, &re, address) {
		if c != nil {
			_ = c.Close()
		}
		return &tlsconn.RefusedError{}
	}
	return re
}

func TestServerSideRequestForgeryBySpecialAddress(t *testing.T) {
	rec := &recorder{answers: map[string][][]netip.Addr{}}
	r := egressRig(t, rec)
	for i, s := range specialAddresses {
		host := "h" + string(rune('a'+i%26)) + string(rune('a'+i/26)) + ".partner.example"
		rec.mu.Lock()
		rec.answers[host] = [][]netip.Addr{addrs(s)}
		rec.mu.Unlock()
		re := r.refused(net.JoinHostPort(host, "443"))
		assert.ErrorIs(t, re, tlsconn.ErrDenied, s)
		assert.Equal(t, tlsconn.AtGateway, re.Side, s)
		// And as a literal, which a captured node may ask for.
		re = r.refused(net.JoinHostPort(s, "443"))
		assert.ErrorIs(t, re, tlsconn.ErrDenied, s)
	}
	_, dialled := rec.seen()
	assert.Empty(t, dialled)
}

func TestMixedAnswersRebindingAndSearchDomains(t *testing.T) {
	rec := &recorder{answers: map[string][][]netip.Addr{
		"mixed.partner.example":  {addrs("8.8.8.8", "169.254.169.254")},
		"mixed6.partner.example": {addrs("2600::1", "::1")},
		"mapped.partner.example": {addrs("::ffff:127.0.0.1")},
		"rebind.partner.example": {addrs("8.8.8.8"), addrs("127.0.0.1")},
		"good.partner.example":   {addrs("9.9.9.9", "2620:fe::fe")},
	}}
	r := egressRig(t, rec)
	for _, h := range []string{"mixed", "mixed6", "mapped"} {
		assert.ErrorIs(t, r.refused(h+".partner.example:443"), tlsconn.ErrDenied, h)
	}
	_, dialled := rec.seen()
	require.Empty(t, dialled, "one bad answer refuses all")
	assert.ErrorIs(t, r.refused("rebind.partner.example:443"), tlsconn.ErrUnavailable)
	assert.ErrorIs(t, r.refused("rebind.partner.example:443"), tlsconn.ErrDenied, "the second answer is another")
	assert.ErrorIs(t, r.refused("good.partner.example:443"), tlsconn.ErrUnavailable)
	lookups, dialled := rec.seen()
	assert.Equal(t, []netip.AddrPort{netip.MustParseAddrPort("8.8.8.8:443"), netip.MustParseAddrPort("9.9.9.9:443"), netip.MustParseAddrPort("[2620:fe::fe]:443")}, dialled, "literals of the one resolution")
	for _, l := range lookups {
		assert.True(t, strings.HasSuffix(l, "."), "search domains are kept out: %s", l)
	}
	assert.Len(t, lookups, 6)
}

func TestHostSyntaxTricks(t *testing.T) {
	rec := &recorder{}
	r := egressRig(t, rec)
	r.up()
	for _, h := range []string{"127.1", "0x7f.1", "2130706433", "0x7f000001", "127.0.0.1.", "0177.0.0.1", "a.partner.example.", "-a.partner.example", "a..partner.example", "a_b.partner.example",
		"xn--\u00e9.partner.example", "fe80::1%eth0", "[::1]", "a.partner.example/..", "a.partner.example#", strings.Repeat("a", 64) + ".partner.example", strings.Repeat("a.", 130) + "partner.example", "", " a.partner.example", "a.partner.example\x00"} {
		_, err := r.client.DialContext(r.ctx(), "tcp", net.JoinHostPort(h, "443"))
		assert.Error(t, err, h)
	}
	for _, a := range []string{"a.partner.example", "a.partner.example:0", "a.partner.example:65536", "a.partner.example:+443", "a.partner.example:0443", "a.partner.example:https", ":443"} {
		_, err := r.client.DialContext(r.ctx(), "tcp", a)
		assert.Error(t, err, a)
	}
	_, err := r.client.DialContext(r.ctx(), "unix", "a.partner.example:443")
	assert.ErrorContains(t, err, "only tcp and udp")
	lookups, dialled := rec.seen()
	assert.Empty(t, lookups)
	assert.Empty(t, dialled)
}

func TestBroadPrefixDoesNotReachSpecialAddresses(t *testing.T) {
	f := func(addr string) tlsconn.Flow {
		return tlsconn.Flow{Node: tlsconn.ID{TrustDomain: "city.example", Path: "/node/17"}, Direction: tlsconn.ToCloud, Proto: tlsconn.TCP, Host: addr, Port: 80, Addr: netip.MustParseAddr(addr)}
	}
	policy := func(cidrs ...string) *tlsconn.Policy {
		r := tlsconn.Rule{Name: "r", Action: tlsconn.Allow, Peers: []string{"spiffe://city.example/**"}, Direction: tlsconn.ToCloud, Proto: tlsconn.TCP, Ports: []string{"80"}}
		for _, c := range cidrs {
			r.CIDRs = append(r.CIDRs, netip.MustParsePrefix(c))
		}
		return &tlsconn.Policy{Version: 1, Rules: []tlsconn.Rule{r}}
	}
	broad := policy("0.0.0.0/0", "::/0")
	for _, s := range specialAddresses {
		d := broad.Evaluate(f(s))
		a := netip.MustParseAddr(s)
		priv := a.IsPrivate() && s != "fd00:ec2::254" || s == "100.64.0.1" || s == "2001:470::200:5efe:a00:1"
		if priv && s != "2001:470::200:5efe:a00:1" {
			assert.True(t, d.Allowed, "%s: %s", s, d.Reason)
			continue
		}
		if a.Is4In6() && !priv || !priv {
			assert.False(t, d.Allowed, s)
		}
	}
	assert.True(t, policy("127.0.0.1/32").Evaluate(f("127.0.0.1")).Allowed)
	assert.False(t, policy("127.0.0.0/31").Evaluate(f("127.0.0.1")).Allowed)
	assert.False(t, policy("10.0.0.0/8").Evaluate(f("::ffff:10.0.0.1")).Allowed, "forms of an address are not the address")
	assert.True(t, policy("169.254.169.254/32").Evaluate(f("169.254.169.254")).Allowed, "a named exception")
}

func TestGatewayDoesNotDialItself(t *testing.T) {
	r := newRig(t, nil, func(r *rig) {
		all := loopbackRule("1-65535")
		r.clientC.Policy, r.gatewayC.Policy = store(t, all), store(t, all)
	})
	re := r.refused(r.addr)
	assert.ErrorIs(t, re, tlsconn.ErrDenied)
	assert.Contains(t, re.Reason, "gateway itself")
}

func TestScanOfDestinationsIsStopped(t *testing.T) {
	rec := &recorder{answers: map[string][][]netip.Addr{}}
	r := newRig(t, []tlsconn.Rule{{Name: "partners", Action: tlsconn.Allow, Peers: []string{nodeName}, Direction: tlsconn.ToCloud, Proto: tlsconn.TCP,
		Hosts: []string{"*.partner.example"}, Ports: []string{"1-65535"}}}, func(r *rig) {
		r.clientC.Limits = tlsconn.Limits{FlowsPerSecond: tlsconn.Unlimited, Destinations: tlsconn.Unlimited}
		r.gatewayC.Limits = tlsconn.Limits{FlowsPerSecond: tlsconn.Unlimited, Destinations: 8}
		r.gatewayC.Resolver, r.gatewayC.Dial = rec, rec.Dial
	})
	limited := 0
	for port := range 20 {
		re := r.refused(net.JoinHostPort("a.partner.example", string(rune('1'+port/10))+string(rune('0'+port%10))))
		if errors.Is(re, tlsconn.ErrLimit) {
			limited++
			assert.Equal(t, tlsconn.AtGateway, re.Side)
		}
	}
	assert.Equal(t, 12, limited)
}

func TestCapsPerNode(t *testing.T) {
	t.Run("flows a second", func(t *testing.T) {
		r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, func(r *rig) { r.gatewayC.Limits.FlowsPerSecond = 2 })
		r.echo("echo")
		n := 0
		for range 10 {
			c, err := r.client.DialContext(r.ctx(), "tcp", "echo:7")
			if err != nil {
				assert.ErrorIs(t, err, tlsconn.ErrLimit)
				n++
				continue
			}
			_ = c.Close()
		}
		assert.GreaterOrEqual(t, n, 4)
	})
	t.Run("bytes a day", func(t *testing.T) {
		r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, func(r *rig) { r.gatewayC.Limits.BytesPerDay = 1 << 20 })
		r.echo("echo")
		c := r.dial("echo:7")
		go func() { _, _ = c.Write(make([]byte, 4<<20)) }()
		buf := make([]byte, 4096)
		var err error
		for err == nil {
			_, err = c.Read(buf)
		}
		assert.ErrorIs(t, err, tlsconn.ErrLimit)
		_, err = r.client.DialContext(r.ctx(), "tcp", "echo:7")
		assert.ErrorIs(t, err, tlsconn.ErrLimit, "reconnecting does not help")
	})
	t.Run("flows under a rule", func(t *testing.T) {
		rule := serviceRule("echo")
		rule.MaxFlows = 2
		r := newRig(t, []tlsconn.Rule{rule})
		r.echo("echo")
		a, b := r.dial("echo:7"), r.dial("echo:7")
		_, err := r.client.DialContext(r.ctx(), "tcp", "echo:7")
		assert.ErrorIs(t, err, tlsconn.ErrLimit)
		require.NoError(t, a.Close())
		require.Eventually(t, func() bool {
			c, err := r.client.DialContext(r.ctx(), "tcp", "echo:7")
			if err == nil {
				_ = c.Close()
			}
			return err == nil
		}, 5*time.Second, 10*time.Millisecond)
		_ = b.Close()
	})
}
