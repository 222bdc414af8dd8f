package tlsconn

import (
	"bytes"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func FuzzParseID(f *testing.F) {
	for _, s := range []string{"spiffe://city.example/node/17", "spiffe://td", "spiffe://td/", "spiffe://td/a/../b", "spiffe://TD/a", "spiffe://td:1/a", "spiffe://td/a?b", "spiffe://" + strings.Repeat("a", 3000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			return
		}
		require.Equal(t, s, id.String())
		p, err := parseIDPattern(s)
		require.NoError(t, err)
		require.True(t, p.match(id))
		require.False(t, p.match(ID{}))
	})
}

func FuzzTarget(f *testing.F) {
	for _, s := range []string{"ingest:80", "a.example:443", "127.1:1", "0x7f.1:80", "[::1]:443", "[fe80::1%eth0]:1", "2130706433:80", "a..b:1", "A.Example:65535"} {
		f.Add("tcp", s)
	}
	f.Fuzz(func(t *testing.T, network, s string) {
		tg, err := parseTarget(network, s)
		if err != nil {
			return
		}
		again, err := newTarget(tg.proto, tg.host, tg.port)
		require.NoError(t, err)
		require.Equal(t, tg, again)
		if tg.addr.IsValid() {
			class, why := classify(tg.addr)
			require.NotEmpty(t, why)
			if tg.addr.IsLoopback() || tg.addr.IsLinkLocalUnicast() || tg.addr.IsMulticast() || tg.addr.IsUnspecified() {
				require.Equal(t, classNever, class)
			}
			if tg.addr.IsPrivate() {
				require.NotEqual(t, classPublic, class)
			}
		} else {
			_, err := netip.ParseAddr(tg.host)
			require.Error(t, err)
		}
	})
}

func FuzzPolicy(f *testing.F) {
	golden, err := os.ReadFile("testdata/policy-v1.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden)
	f.Add([]byte(`{"version":1,"serial":1,"rules":[{"name":"x","peers":["spiffe://a/**"],"direction":"to-node","proto":"udp","services":["s"]}]}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePolicy(b)
		if err != nil {
			return
		}
		d := p.Evaluate(Flow{})
		assert.False(t, d.Allowed, "nobody may reach nothing")
		for _, r := range p.Rules {
			p.Evaluate(Flow{Node: ID{TrustDomain: "a", Path: "/b"}, Direction: r.Direction, Proto: r.Proto, Host: "x.y", Port: 1, Inspected: true})
		}
	})
}

func FuzzFrames(f *testing.F) {
	var b bytes.Buffer
	_ = writeFrame(&b, openFrame{Version: 1, Kind: kindFlow, Flow: newFlowID(), Proto: TCP, Host: "ingest"})
	f.Add(b.Bytes())
	b.Reset()
	_ = writeFrame(&b, controlFrame{Version: 1, Type: ctlEnd, Flow: newFlowID(), Up: 1})
	f.Add(b.Bytes())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, '{'})
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, v := range []any{&openFrame{}, &replyFrame{}, &controlFrame{}} {
			r := bytes.NewReader(in)
			if readFrame(r, v) == nil {
				var out bytes.Buffer
				if err := writeFrame(&out, v); err != nil {
					require.ErrorIs(t, err, ErrProtocol)
				}
			}
		}
	})
}

func FuzzCRL(f *testing.F) {
	f.Add([]byte("0\x82"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &TrustStore{crls: map[string]*crl{}}
		require.Error(t, s.AddCRL(b), "nobody's list")
	})
}
