package mud_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tlsconn"
	"github.com/trusttree/trusttree/tlsconn/mud"
)

// TestExampleOfTheStandard imports the light bulb of RFC 8520, section 9.
func TestExampleOfTheStandard(t *testing.T) {
	b, err := os.ReadFile("testdata/rfc8520-9.json")
	require.NoError(t, err)
	p, err := mud.Import(b, peers, 1)
	require.NoError(t, err)
	require.Len(t, p.Rules, 1, "the to-device list is about answers")
	assert.True(t, p.Evaluate(flow("test.example.com", 443, tlsconn.TCP)).Allowed)
	assert.False(t, p.Evaluate(flow("test.example.com", 80, tlsconn.TCP)).Allowed)
	assert.False(t, p.Evaluate(flow("test.example.com", 443, tlsconn.UDP)).Allowed)
	assert.False(t, p.Evaluate(flow("www.example.com", 443, tlsconn.TCP)).Allowed)
}

// TestAccessListVectors: entries as RFC 8519 writes them, and what they mean here.
func TestAccessListVectors(t *testing.T) {
	const file = `{"ietf-mud:mud":{"mud-version":1,"mud-url":"https://x.example/l","last-update":"2026-01-01T00:00:00Z","is-supported":true,
"from-device-policy":{"access-lists":{"access-list":[{"name":"a"}]}},"to-device-policy":{"access-lists":{"access-list":[]}}},
"ietf-access-control-list:acls":{"acl":[{"name":"a","type":"ipv4-acl-type","aces":{"ace":[{"name":"e","matches":%s,"actions":{"forwarding":"accept"}}]}}]}}`
	ok := func(addr string, port uint16, proto string) tlsconn.Flow { return flow(addr, port, proto) }
	for name, c := range map[string]struct {
		matches string
		allows  []tlsconn.Flow
		denies  []tlsconn.Flow
		refused bool
	}{
		"eq": {`{"ipv4":{"destination-ipv4-network":"9.9.9.0/24","protocol":6},"tcp":{"destination-port":{"operator":"eq","port":443}}}`,
			[]tlsconn.Flow{ok("9.9.9.9", 443, "tcp")}, []tlsconn.Flow{ok("9.9.8.9", 443, "tcp"), ok("9.9.9.9", 444, "tcp")}, false},
		"range": {`{"ipv4":{"destination-ipv4-network":"9.9.9.9/32"},"udp":{"destination-port":{"lower-port":6000,"upper-port":6002}}}`,
			[]tlsconn.Flow{ok("9.9.9.9", 6000, "udp"), ok("9.9.9.9", 6002, "udp")}, []tlsconn.Flow{ok("9.9.9.9", 5999, "udp"), ok("9.9.9.9", 6003, "udp"), ok("9.9.9.9", 6001, "tcp")}, false},
		"ipv6": {`{"ipv6":{"destination-ipv6-network":"2620:fe::/48","protocol":17},"udp":{"destination-port":{"operator":"eq","port":853}}}`,
			[]tlsconn.Flow{ok("2620:fe::9", 853, "udp")}, []tlsconn.Flow{ok("2620:ff::9", 853, "udp")}, false},
		"gte":                   {matches: `{"ipv4":{"destination-ipv4-network":"9.9.9.9/32"},"tcp":{"destination-port":{"operator":"gte","port":1024}}}`, refused: true},
		"lte":                   {matches: `{"ipv4":{"destination-ipv4-network":"9.9.9.9/32"},"tcp":{"destination-port":{"operator":"lte","port":1024}}}`, refused: true},
		"neq":                   {matches: `{"ipv4":{"destination-ipv4-network":"9.9.9.9/32"},"tcp":{"destination-port":{"operator":"neq","port":22}}}`, refused: true},
		"range upside down":     {matches: `{"ipv4":{"destination-ipv4-network":"9.9.9.9/32"},"tcp":{"destination-port":{"lower-port":9,"upper-port":3}}}`, refused: true},
		"range without an end":  {matches: `{"ipv4":{"destination-ipv4-network":"9.9.9.9/32"},"tcp":{"destination-port":{"lower-port":9}}}`, refused: true},
		"tcp flags":             {matches: `{"ipv4":{"destination-ipv4-network":"9.9.9.9/32"},"tcp":{"flags":"syn","destination-port":{"operator":"eq","port":22}}}`, refused: true},
		"icmp":                  {matches: `{"ipv4":{"destination-ipv4-network":"9.9.9.9/32"},"icmp":{"type":8}}`, refused: true},
		"ethernet":              {matches: `{"eth":{"ethertype":"ietf-ethertypes:ipv4"}}`, refused: true},
		"ttl":                   {matches: `{"ipv4":{"ttl":1,"destination-ipv4-network":"9.9.9.9/32"},"tcp":{"destination-port":{"operator":"eq","port":22}}}`, refused: true},
		"both families":         {matches: `{"ipv4":{"destination-ipv4-network":"9.9.9.9/32"},"ipv6":{"destination-ipv6-network":"::/0"},"tcp":{"destination-port":{"operator":"eq","port":22}}}`, refused: true},
		"both protocols":        {matches: `{"ipv4":{"destination-ipv4-network":"9.9.9.9/32"},"tcp":{"destination-port":{"operator":"eq","port":22}},"udp":{"destination-port":{"operator":"eq","port":22}}}`, refused: true},
		"source network":        {matches: `{"ipv4":{"source-ipv4-network":"9.9.9.9/32"},"tcp":{"destination-port":{"operator":"eq","port":22}}}`, refused: true},
		"bits beyond prefix":    {matches: `{"ipv4":{"destination-ipv4-network":"9.9.9.9/24"},"tcp":{"destination-port":{"operator":"eq","port":22}}}`, refused: true},
		"network of the other":  {matches: `{"ipv4":{"destination-ipv4-network":"::/0"},"tcp":{"destination-port":{"operator":"eq","port":22}}}`, refused: true},
		"name that is a number": {matches: `{"ipv4":{"ietf-acldns:dst-dnsname":"127.1"},"tcp":{"destination-port":{"operator":"eq","port":22}}}`, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := mud.Import([]byte(fmt.Sprintf(file, c.matches)), peers, 1)
			if c.refused {
				require.Error(t, err)
				assert.True(t, strings.HasPrefix(err.Error(), "mud: "), err)
				return
			}
			require.NoError(t, err)
			for _, f := range c.allows {
				assert.True(t, p.Evaluate(f).Allowed, f)
			}
			for _, f := range c.denies {
				assert.False(t, p.Evaluate(f).Allowed, f)
			}
		})
	}
}
