package mud_test

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tlsconn"
	"github.com/trusttree/trusttree/tlsconn/mud"
)

var peers = []string{"spiffe://city.example/node/*"}

func flow(host string, port uint16, proto string) tlsconn.Flow {
	return tlsconn.Flow{Node: tlsconn.ID{TrustDomain: "city.example", Path: "/node/1"}, Direction: tlsconn.ToCloud, Proto: proto, Host: host, Port: port}
}

func golden(t testing.TB) []byte {
	b, err := os.ReadFile("testdata/lamp-v1.json")
	require.NoError(t, err)
	return b
}

func TestImport(t *testing.T) {
	p, err := mud.Import(golden(t), peers, 3)
	require.NoError(t, err)
	assert.EqualValues(t, 3, p.Serial)
	for _, c := range []struct {
		f  tlsconn.Flow
		ok bool
	}{
		{flow("gw.city.example", 8443, tlsconn.TCP), true},
		{flow("gw.city.example", 443, tlsconn.TCP), false},
		{flow("ntp.city.example", 123, tlsconn.UDP), true},
		{flow("192.168.7.9", 5684, tlsconn.UDP), true},
		{flow("192.168.8.9", 5684, tlsconn.UDP), false},
		{flow("other.example", 8443, tlsconn.TCP), false},
	} {
		assert.Equal(t, c.ok, p.Evaluate(c.f).Allowed, c.f.Host)
	}
}

func TestImportNeverWidens(t *testing.T) {
	for name, change := range map[string][2]string{
		"deny entry":             {`"accept"`, `"drop"`},
		"unknown match":          {`"protocol": 6,`, `"protocol": 6, "dscp": 3,`},
		"local networks":         {`"matches": {`, `"matches": {"ietf-mud:mud": {"local-networks": [null]},`},
		"no port":                {`"destination-port": {"operator": "eq", "port": 8443}`, `"source-port": {"operator": "eq", "port": 8443}`},
		"not equal":              {`"operator": "eq", "port": 8443`, `"operator": "neq", "port": 8443`},
		"flow to the device":     {`"ietf-mud:direction-initiated": "from-device",`, `"ietf-mud:direction-initiated": "to-device",`},
		"other version":          {`"mud-version": 1`, `"mud-version": 2`},
		"extension":              {`"is-supported": true`, `"is-supported": true, "extensions": ["x"]`},
		"list that is not there": {`{"name": "from-v4"}]`, `{"name": "from-v5"}]`},
		"port of no protocol":    {`"protocol": 6,`, `"protocol": 17,`},
	} {
		t.Run(name, func(t *testing.T) {
			in := strings.Replace(string(golden(t)), change[0], change[1], 1)
			require.NotEqual(t, string(golden(t)), in)
			_, err := mud.Import([]byte(in), peers, 1)
			assert.Error(t, err)
		})
	}
}

func TestExportIsReadBackTheSame(t *testing.T) {
	p := tlsconn.Policy{Version: 1, Serial: 9, Rules: []tlsconn.Rule{
		{Name: "gateway", Action: tlsconn.Allow, Peers: peers, Direction: tlsconn.ToCloud, Proto: tlsconn.TCP, Hosts: []string{"gw.city.example"}, Ports: []string{"8443", "9000-9010"}},
		{Name: "depot", Action: tlsconn.Allow, Peers: peers, Direction: tlsconn.ToCloud, Proto: tlsconn.UDP, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24"), netip.MustParsePrefix("2001:470:1::/48")}, Ports: []string{"5684"}},
		{Name: "inside the tunnel", Action: tlsconn.Allow, Peers: peers, Direction: tlsconn.ToCloud, Proto: tlsconn.TCP, Services: []string{"ingest"}},
	}}
	out, err := mud.Export(p, mud.Options{URL: "https://maker.example/lamp.json", SystemInfo: "lamp", LastUpdate: time.Unix(1_700_000_000, 0)})
	require.NoError(t, err)
	back, err := mud.Import(out, peers, 9)
	require.NoError(t, err)
	for _, f := range []tlsconn.Flow{flow("gw.city.example", 8443, tlsconn.TCP), flow("gw.city.example", 9005, tlsconn.TCP), flow("gw.city.example", 9011, tlsconn.TCP), flow("10.1.2.3", 5684, tlsconn.UDP), flow("10.1.3.3", 5684, tlsconn.UDP), flow("2001:470:1::5", 5684, tlsconn.UDP)} {
		assert.Equal(t, p.Evaluate(f).Allowed, back.Evaluate(f).Allowed, f)
	}
	p.Rules[0].Hosts = []string{"*.city.example"}
	_, err = mud.Export(p, mud.Options{URL: "https://maker.example/lamp.json"})
	assert.ErrorContains(t, err, "cannot say")
}

func FuzzImport(f *testing.F) {
	f.Add(golden(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := mud.Import(b, peers, 1)
		if err == nil {
			assert.False(t, p.Evaluate(tlsconn.Flow{}).Allowed)
		}
	})
}
