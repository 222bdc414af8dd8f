package tlsconn_test

import (
	"bytes"
	"flag"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/tlsconn"
)

// each is one run's share of a test: what it started ends with it.
type each struct {
	testing.TB
	ends []func()
}

func (e *each) Cleanup(f func()) { e.ends = append(e.ends, f) }

func (e *each) clean() {
	for i := len(e.ends) - 1; i >= 0; i-- {
		e.ends[i]()
	}
}

// fewer sets how many runs a model gets, for one test.
func fewer(t *testing.T, quick, full int) {
	before := flag.Lookup("rapid.checks").Value.String()
	require.NoError(t, flag.Set("rapid.checks", strconv.Itoa(testenv.N(quick, full))))
	t.Cleanup(func() { _ = flag.Set("rapid.checks", before) })
}

// TestModelOfFlows runs random lives of flows and holds what both ends audit to a
// model: a flow whose two ends closed cleanly has equal byte counts and is whole;
// every other one is truncated, with its reason; and each has one record.
func TestModelOfFlows(top *testing.T) {
	type end struct {
		c      net.Conn
		sent   int
		closed bool
	}
	type life struct {
		node, cloud end
		reset       bool
	}
	fewer(top, 5, 60) // each makes a tunnel
	rapid.Check(top, func(t *rapid.T) {
		outer := &each{TB: top}
		defer outer.clean()
		r := newRig(outer, []tlsconn.Rule{serviceRule("svc")}, unlimited)
		ln, err := r.gateway.Listen("svc")
		require.NoError(t, err)
		var lives []*life
		pick := func(t *rapid.T) *life {
			var open []*life
			for _, l := range lives {
				if !l.reset && !(l.node.closed && l.cloud.closed) {
					open = append(open, l)
				}
			}
			if len(open) == 0 {
				t.Skip("none is open")
			}
			return open[rapid.IntRange(0, len(open)-1).Draw(t, "flow")]
		}
		side := func(t *rapid.T, l *life) (a, b *end) {
			if rapid.Bool().Draw(t, "node") {
				return &l.node, &l.cloud
			}
			return &l.cloud, &l.node
		}
		t.Repeat(map[string]func(*rapid.T){
			"open": func(t *rapid.T) {
				if len(lives) == 200 {
					t.Skip("enough")
				}
				l := &life{node: end{c: r.dial("svc:1")}}
				l.cloud.c, err = ln.Accept()
				require.NoError(t, err)
				lives = append(lives, l)
			},
			"send": func(t *rapid.T) {
				l := pick(t)
				a, b := side(t, l)
				if a.closed {
					t.Skip("closed")
				}
				msg := bytes.Repeat([]byte("m"), rapid.SampledFrom([]int{1, 4000, 30_000}).Draw(t, "size"))
				_, err := a.c.Write(msg)
				require.NoError(t, err)
				a.sent += len(msg)
				got := make([]byte, len(msg))
				_, err = io.ReadFull(b.c, got)
				require.NoError(t, err)
				require.Equal(t, msg, got)
			},
			"end": func(t *rapid.T) {
				l := pick(t)
				a, b := side(t, l)
				if a.closed {
					t.Skip("closed")
				}
				require.NoError(t, a.c.(interface{ CloseWrite() error }).CloseWrite())
				a.closed = true
				_, err := b.c.Read(make([]byte, 1))
				require.ErrorIs(t, err, io.EOF)
			},
			"reset": func(t *rapid.T) {
				l := pick(t)
				a, b := side(t, l)
				if a.closed {
					t.Skip("who reads on the other side has seen the end")
				}
				require.NoError(t, a.c.(interface{ Reset() error }).Reset())
				l.reset = true
				_, err := b.c.Read(make([]byte, 1))
				require.Error(t, err)
				require.NotErrorIs(t, err, io.EOF)
			},
		})
		for _, l := range lives { // what is still open is closed cleanly
			if l.reset {
				continue
			}
			for _, e := range []*end{&l.node, &l.cloud} {
				if !e.closed {
					require.NoError(t, e.c.(interface{ CloseWrite() error }).CloseWrite())
				}
			}
			for _, e := range []*end{&l.node, &l.cloud} {
				_, _ = io.Copy(io.Discard, struct{ io.Reader }{e.c})
				_ = e.c.Close()
			}
		}
		for _, side := range []*records{r.node, r.gate} {
			deadline := time.Now().Add(waitTime)
			for {
				flows, _ := side.all()
				if len(flows) >= len(lives) || time.Now().After(deadline) {
					break
				}
				time.Sleep(time.Millisecond)
			}
			flows, _ := side.all()
			require.Len(t, flows, len(lives), "one record for each")
			whole := map[[2]int]int{}
			broken := 0
			for _, f := range flows {
				if f.Truncated {
					broken++
					require.NotEqual(t, tlsconn.CodeOK, f.Code)
				} else {
					require.Equal(t, tlsconn.CodeOK, f.Code)
					whole[[2]int{int(f.Up), int(f.Down)}]++
				}
			}
			for _, l := range lives {
				if l.reset {
					broken--
				} else {
					whole[[2]int{l.node.sent, l.cloud.sent}]--
				}
			}
			require.Zero(t, broken, "what was reset is truncated, and nothing else is")
			for counts, n := range whole {
				require.Zero(t, n, "counts %v", counts)
			}
		}
	})
}
