package tlsconn_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tlsconn"
)

// TestLaterRequestsAreHeldToTheRule: the policy names one host; a connection that
// began with it can't go on to another, at either end.
func TestLaterRequestsAreHeldToTheRule(t *testing.T) {
	var evil atomic.Int64
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if strings.Contains(q.Host, "admin") {
			evil.Add(1)
		}
		b, _ := io.ReadAll(q.Body)
		_, _ = io.WriteString(w, q.Host+" "+string(b))
	})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(func() { _ = s.Close() })
	strict := cdnRule(func(r *tlsconn.Rule) { r.HTTPHosts = []string{"cdn.partner.example"} })
	const good = "GET / HTTP/1.1\r\nHost: cdn.partner.example\r\n\r\n"
	for _, side := range []struct {
		name          string
		node, gateway []tlsconn.Rule
	}{{"at the node", strict, cdnRule(nil)}, {"at the gateway", cdnRule(nil), strict}} {
		t.Run(side.name, func(t *testing.T) {
			r := inspectRig(t, ln.Addr().String(), side.node, side.gateway)
			// try sends requests after one that is allowed and returns the answers.
			try := func(requests ...string) ([]string, error) {
				c := r.dial("cdn.partner.example:443")
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(15 * time.Second))
				br := bufio.NewReader(c)
				var got []string
				for _, q := range append([]string{good}, requests...) {
					if _, err := io.WriteString(c, q); err != nil {
						return got, err
					}
					resp, err := http.ReadResponse(br, nil)
					if err != nil {
						return got, err
					}
					b, err := io.ReadAll(resp.Body)
					if err != nil {
						return got, err
					}
					got = append(got, string(b))
				}
				return got, nil
			}
			got, err := try(good, "POST / HTTP/1.1\r\nHost: cdn.partner.example\r\nContent-Length: 5\r\n\r\nhello",
				"POST / HTTP/1.1\r\nHost: cdn.partner.example\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: v\r\n\r\n", good)
			require.NoError(t, err)
			assert.Equal(t, []string{"cdn.partner.example ", "cdn.partner.example ", "cdn.partner.example hello", "cdn.partner.example abcde", "cdn.partner.example "}, got)
			const admin = "GET / HTTP/1.1\r\nHost: admin.partner.example\r\n\r\n"
			for name, q := range map[string]string{
				"another host":                     admin,
				"another host behind a body":       "POST / HTTP/1.1\r\nHost: cdn.partner.example\r\nContent-Length: 2\r\n\r\nok" + admin,
				"another host in the same write":   good + admin,
				"two lengths":                      "POST / HTTP/1.1\r\nHost: cdn.partner.example\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
				"length and chunks":                "POST / HTTP/1.1\r\nHost: cdn.partner.example\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
				"chunks in HTTP/1.0":               "POST / HTTP/1.0\r\nHost: cdn.partner.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
				"chunk longer than it says":        "POST / HTTP/1.1\r\nHost: cdn.partner.example\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
				"bare line feeds":                  "GET / HTTP/1.1\nHost: cdn.partner.example\n\n" + strings.ReplaceAll(admin, "\r", "") + "\r\n\r\n",
				"space before the colon":           "GET / HTTP/1.1\r\nHost : admin.partner.example\r\nHost: cdn.partner.example\r\n\r\n",
				"folded header":                    "GET / HTTP/1.1\r\nHost: cdn.partner.example\r\nX: a\r\n Host: admin.partner.example\r\n\r\n",
				"upgrade":                          "GET / HTTP/1.1\r\nHost: cdn.partner.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
				"upgrade to HTTP/2 without TLS":    "GET / HTTP/1.1\r\nHost: cdn.partner.example\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n\r\n",
				"HTTP/2 prior knowledge as second": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
				"CONNECT":                          "CONNECT admin.partner.example:22 HTTP/1.1\r\nHost: cdn.partner.example\r\n\r\n",
				"absolute form":                    "GET http://admin.partner.example/ HTTP/1.1\r\nHost: cdn.partner.example\r\n\r\n",
			} {
				_, err := try(q, good)
				if assert.Error(t, err, name) {
					assert.ErrorIs(t, err, tlsconn.ErrDenied, name)
				}
			}
			assert.Zero(t, evil.Load(), "the destination saw the other host")
		})
	}
}

// TestDenyByContentCanNotBeHiddenFrom: a deny rule on content holds for those who
// hide it, by HTTP/2 without TLS or by offering a protocol more.
func TestDenyByContentCanNotBeHiddenFrom(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = ln.Close() })
	deny := cdnRule(func(r *tlsconn.Rule) {
		r.Name, r.Action, r.HTTPHosts = "no admin", tlsconn.Deny, []string{"admin.partner.example"}
	})
	r := inspectRig(t, ln.Addr().String(), cdnRule(nil), append(cdnRule(nil), deny...))
	for name, q := range map[string]string{
		"the host itself":          "GET / HTTP/1.1\r\nHost: admin.partner.example\r\n\r\n",
		"HTTP/2 prior knowledge":   "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"read in two ways":         "GET / HTTP/1.1\r\nHost: cdn.partner.example\r\nHost: admin.partner.example\r\n\r\n",
		"second request":           "GET / HTTP/1.1\r\nHost: cdn.partner.example\r\n\r\nGET / HTTP/1.1\r\nHost: admin.partner.example\r\n\r\n",
		"smuggled by bare newline": "GET / HTTP/1.1\r\nHost: cdn.partner.example\r\nX: y\n\nGET / HTTP/1.1\r\nHost: admin.partner.example\r\n\r\n",
	} {
		c := r.dial("cdn.partner.example:443")
		_ = c.SetDeadline(time.Now().Add(15 * time.Second))
		_, err := io.WriteString(c, q)
		if err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		assert.ErrorIs(t, err, tlsconn.ErrDenied, name)
		_ = c.Close()
	}
	d := (&tlsconn.Policy{Version: 1, Rules: append(cdnRule(nil), cdnRule(func(r *tlsconn.Rule) { r.Name, r.Action, r.ALPN = "no h2", tlsconn.Deny, []string{"h2"} })...)}).
		Evaluate(tlsconn.Flow{Node: id(t, nodeName), Direction: tlsconn.ToCloud, Proto: tlsconn.TCP, Host: "cdn.partner.example", Port: 443, Inspected: true, ALPN: []string{"http/1.1", "h2"}})
	assert.False(t, d.Allowed, "one offer more is no way round")
}
