package tlsconn_test

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tlsconn"
)

// nameServer answers over UDP as a hostile name server may: with chains of
// aliases before the addresses. It speaks just enough DNS (RFC 1035) for that.
func nameServer(t *testing.T, zone map[string][]string) *net.Resolver {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	t.Cleanup(func() { _ = pc.Close(); <-done })
	name := func(b []byte, n string) []byte {
		for l := range strings.SplitSeq(strings.TrimSuffix(n, "."), ".") {
			b = append(append(b, byte(len(l))), l...)
		}
		return append(b, 0)
	}
	go func() {
		defer close(done)
		q := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(q)
			if err != nil {
				return
			}
			var labels []string
			i := 12
			for i < n && q[i] != 0 {
				labels = append(labels, string(q[i+1:i+1+int(q[i])]))
				i += 1 + int(q[i])
			}
			question := q[12 : i+5]
			kind := binary.BigEndian.Uint16(q[i+1:])
			host := strings.ToLower(strings.Join(labels, "."))
			var answers []byte
			count := 0
			add := func(owner string, typ uint16, data []byte) {
				answers = name(answers, owner)
				answers = binary.BigEndian.AppendUint16(answers, typ)
				answers = append(answers, 0, 1, 0, 0, 0, 0)
				answers = append(binary.BigEndian.AppendUint16(answers, uint16(len(data))), data...)
				count++
			}
			for hops := 0; hops < 20; hops++ {
				next := ""
				for _, r := range zone[host] {
					if a, err := netip.ParseAddr(r); err != nil {
						add(host, 5, name(nil, r))
						next = r
					} else if a.Is4() && kind == 1 {
						add(host, 1, a.AsSlice())
					} else if a.Is6() && kind == 28 {
						add(host, 28, a.AsSlice())
					}
				}
				if next == "" {
					break
				}
				host = next
			}
			out := append([]byte{q[0], q[1], 0x84, 0, 0, 1, 0, byte(count), 0, 0, 0, 0}, question...)
			_, _ = pc.WriteTo(append(out, answers...), from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", pc.LocalAddr().String())
	}}
}

// TestAliasesLeadNowhereElse: a name that the policy allows is an alias, of an
// alias, of an address inside; or loops; or of one good and one bad address.
func TestAliasesLeadNowhereElse(t *testing.T) {
	rec := &recorder{}
	dns := nameServer(t, map[string][]string{
		"good.partner.example":    {"edge.cdn.example"},
		"edge.cdn.example":        {"9.9.9.9"},
		"one.partner.example":     {"metadata.evil.example"},
		"metadata.evil.example":   {"169.254.169.254"},
		"two.partner.example":     {"hop.evil.example"},
		"hop.evil.example":        {"hop2.evil.example"},
		"hop2.evil.example":       {"127.0.0.1"},
		"mixed.partner.example":   {"pair.evil.example"},
		"pair.evil.example":       {"9.9.9.9", "10.0.0.1"},
		"six.partner.example":     {"sixth.evil.example"},
		"sixth.evil.example":      {"9.9.9.9", "fd00:ec2::254"},
		"loop.partner.example":    {"loop2.partner.example"},
		"loop2.partner.example":   {"loop.partner.example"},
		"literal.partner.example": {"127.0.0.1.evil.example"},
		"127.0.0.1.evil.example":  {"127.0.0.1"},
	})
	r := newRig(t, []tlsconn.Rule{{Name: "partners", Action: tlsconn.Allow, Peers: []string{nodeName}, Direction: tlsconn.ToCloud, Proto: tlsconn.TCP, Hosts: []string{"*.partner.example"}, Ports: []string{"443"}}},
		func(r *rig) { r.gatewayC.Resolver, r.gatewayC.Dial = dns, rec.Dial })
	for _, h := range []string{"one", "two", "mixed", "six", "literal"} {
		assert.ErrorIs(t, r.refused(h+".partner.example:443"), tlsconn.ErrDenied, h)
	}
	assert.ErrorIs(t, r.refused("loop.partner.example:443"), tlsconn.ErrUnavailable)
	assert.ErrorIs(t, r.refused("edge.cdn.example:443"), tlsconn.ErrDenied, "the policy is about the name that was asked for")
	_, dialled := rec.seen()
	require.Empty(t, dialled)
	assert.ErrorIs(t, r.refused("good.partner.example:443"), tlsconn.ErrUnavailable) // the recorder dials nothing
	_, dialled = rec.seen()
	assert.Equal(t, []netip.AddrPort{netip.MustParseAddrPort("9.9.9.9:443")}, dialled)
}

// TestSourceIsFixed: destinations see the configured source, TCP and UDP.
func TestSourceIsFixed(t *testing.T) {
	source := netip.MustParseAddr("127.0.0.3")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer pc.Close()
	_, tport, _ := net.SplitHostPort(ln.Addr().String())
	_, uport, _ := net.SplitHostPort(pc.LocalAddr().String())
	udp := loopbackRule(uport)
	udp.Name, udp.Proto = "udp", tlsconn.UDP
	r := newRig(t, []tlsconn.Rule{loopbackRule(tport), udp}, func(r *rig) { r.gatewayC.SourceAddr = source })
	c := r.dial(ln.Addr().String())
	defer c.Close()
	in, err := ln.Accept()
	require.NoError(t, err)
	defer in.Close()
	assert.Equal(t, source, in.RemoteAddr().(*net.TCPAddr).AddrPort().Addr())
	u, err := r.client.DialContext(r.ctx(), "udp", pc.LocalAddr().String())
	require.NoError(t, err)
	defer u.Close()
	_, err = u.Write([]byte("x"))
	require.NoError(t, err)
	_, from, err := pc.ReadFrom(make([]byte, 10))
	require.NoError(t, err)
	assert.Equal(t, source, from.(*net.UDPAddr).AddrPort().Addr())
}
