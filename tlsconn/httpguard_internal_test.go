package tlsconn

import (
	"bytes"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzHTTPRequests: however the bytes are cut into pieces, the guard says the
// same, lets pass nothing but a prefix of them, and judges every host it passes.
func FuzzHTTPRequests(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a.example\r\n\r\nGET /x HTTP/1.1\r\nHost: b.example\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
		"GET / HTTP/1.1\nHost: a.example\n\n",
	} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(func(t *testing.T, data []byte, step uint8) {
		run := func(step int) (out []byte, hosts []string, failed bool) {
			g := &httpGuard{judge: func(h string) error {
				hosts = append(hosts, h)
				if h != "a.example" {
					return errors.New("another host")
				}
				return nil
			}}
			for b := data; len(b) > 0 && !failed; {
				n := min(step, len(b))
				passed, err := g.pass(b[:n])
				out, b, failed = append(out, passed...), b[n:], err != nil
			}
			return out, hosts, failed
		}
		whole, _, failedWhole := run(max(len(data), 1))
		pieces, hosts, failed := run(int(step)%64 + 1)
		require.Equal(t, failedWhole, failed)
		require.True(t, bytes.HasPrefix(data, pieces))
		if !failed {
			require.Equal(t, whole, pieces)
			for _, h := range hosts {
				require.Equal(t, "a.example", h)
			}
		}
	})
}
