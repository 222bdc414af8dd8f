package mux_test

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/trusttree/trusttree/tlsconn/internal/mux"
)

// TestModelOfStreams runs random sequences of what both ends may do and holds
// every read to a model: bytes in order, an end of file only after a clean end,
// a reset's code, and nothing after either.
func TestModelOfStreams(t *testing.T) {
	type dir struct {
		sent  []byte // not read yet
		ended bool
	}
	type pipe struct {
		end   [2]mux.Stream
		dir   [2]dir // from end i
		reset bool
		code  uint32
		by    int
	}
	rapid.Check(t, func(t *rapid.T) {
		client, server, cut := pair(t, options)
		defer cut()
		var pipes []*pipe
		pick := func(t *rapid.T) (*pipe, int) {
			if len(pipes) == 0 {
				t.Skip("no stream")
			}
			return pipes[rapid.IntRange(0, len(pipes)-1).Draw(t, "stream")], rapid.IntRange(0, 1).Draw(t, "end")
		}
		t.Repeat(map[string]func(*rapid.T){
			"open": func(t *rapid.T) {
				if len(pipes) >= 12 {
					t.Skip("enough")
				}
				p := &pipe{}
				if rapid.Bool().Draw(t, "by the client") {
					p.end[0], p.end[1] = stream(t, client, server)
				} else {
					p.end[0], p.end[1] = stream(t, server, client)
				}
				pipes = append(pipes, p)
			},
			"write": func(t *rapid.T) {
				p, i := pick(t)
				b := bytes.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, rapid.SampledFrom([]int{1, 100, 5000, 70000}).Draw(t, "size"))
				if len(p.dir[i].sent)+len(b) > mux.MinWindow/2 {
					t.Skip("would wait for a reader")
				}
				_, err := p.end[i].Write(b)
				if p.dir[i].ended || p.reset && p.by == i {
					require.Error(t, err)
				} else if !p.reset {
					require.NoError(t, err)
					p.dir[i].sent = append(p.dir[i].sent, b...)
				}
			},
			"close write": func(t *rapid.T) {
				p, i := pick(t)
				if p.reset {
					t.Skip("reset")
				}
				require.NoError(t, p.end[i].CloseWrite())
				p.dir[i].ended = true
			},
			"reset": func(t *rapid.T) {
				p, i := pick(t)
				if p.reset || p.dir[0].ended || p.dir[1].ended {
					t.Skip("over")
				}
				p.code = rapid.Uint32Range(1, 99).Draw(t, "code")
				require.NoError(t, p.end[i].Reset(p.code))
				p.reset, p.by = true, i
			},
			"read": func(t *rapid.T) {
				p, i := pick(t)
				d := &p.dir[1-i]
				if len(d.sent) == 0 && !d.ended && !p.reset {
					t.Skip("would wait")
				}
				b := make([]byte, 80000)
				n, err := p.end[i].Read(b)
				switch {
				case p.reset && p.by == i:
					require.Equal(t, &mux.ResetError{Code: p.code}, err)
				case p.reset && err != nil:
					require.Equal(t, &mux.ResetError{Code: p.code, Remote: true}, err)
				case err == io.EOF:
					require.True(t, d.ended && len(d.sent) == 0, "an end of file that was not sent")
				default:
					require.NoError(t, err)
					require.True(t, bytes.HasPrefix(d.sent, b[:n]), "bytes changed")
					d.sent = d.sent[n:]
				}
			},
		})
	})
}

// FuzzPeer: whatever a peer sends, a session neither panics nor holds more than
// its windows.
func FuzzPeer(f *testing.F) {
	f.Add([]byte{0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 2, 'h', 'i'})
	f.Add([]byte{0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Add(bytes.Repeat([]byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 'x'}, 100))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, b := net.Pipe()
		s, err := mux.New(b, false, options)
		require.NoError(t, err)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = io.Copy(io.Discard, a) })
		wg.Go(func() {
			for {
				st, err := s.Accept()
				if err != nil {
					return
				}
				wg.Go(func() { _, _ = io.Copy(struct{ io.Writer }{st}, struct{ io.Reader }{st}); _ = st.Close() })
			}
		})
		_, _ = a.Write(data)
		_ = a.Close()
		<-s.Done()
		wg.Wait()
	})
}
