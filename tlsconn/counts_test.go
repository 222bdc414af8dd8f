package tlsconn_test

import (
	"io"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tlsconn"
)

// TestCountsThatNobodyConfirms is a node that never says what it counted: its
// flow's record comes all the same, and is not a whole flow's.
func TestCountsThatNobodyConfirms(t *testing.T) {
	r := newRig(t, []tlsconn.Rule{serviceRule("echo")})
	r.echo("echo")
	c := r.captured(t)
	require.NotNil(t, c.reply(c.open(controlOpen, hello)))
	s := c.open(flowOpen)
	require.EqualValues(t, tlsconn.CodeOK, c.reply(s)["code"])
	require.NoError(t, s.CloseWrite())
	_, err := s.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	f := r.gate.flow(t, "record", func(tlsconn.FlowRecord) bool { return true })
	assert.True(t, f.Truncated)
	assert.Contains(t, f.Reason, "did not confirm")
}

// TestCountsComeBeforeBye ends many flows and drains the gateway at once: no
// count is lost on its way.
func TestCountsComeBeforeBye(t *testing.T) {
	r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, unlimited)
	r.echo("echo")
	const flows = 50
	for range flows {
		c := r.dial("echo")
		_, err := c.Write([]byte("count"))
		require.NoError(t, err)
		closeWrite(t, c)
		got, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Equal(t, "count", string(got))
		require.NoError(t, c.Close())
	}
	require.NoError(t, r.gateway.Shutdown(r.ctx()))
	for name, side := range map[string]*records{"node": r.node, "gateway": r.gate} {
		require.Eventually(t, func() bool {
			got, _ := side.all()
			return len(got) == flows
		}, waitTime, tickTime)
		got, _ := side.all()
		for _, f := range got {
			assert.Equal(t, tlsconn.CodeOK, f.Code, "%s: %s", name, f.Reason)
			assert.False(t, f.Truncated, "%s: %s", name, f.Reason)
			assert.EqualValues(t, 5, f.Up)
			assert.EqualValues(t, 5, f.Down)
		}
	}
}

// TestCountsOfManyFlowsAtOnce: whatever goes together, each flow's counts reach
// the other end whole.
func TestCountsOfManyFlowsAtOnce(t *testing.T) {
	r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, unlimited)
	r.echo("echo")
	at := r.forward("echo")
	const workers, each = 40, 50
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				app, err := net.Dial("tcp", at)
				if !assert.NoError(t, err) {
					return
				}
				_, err = io.WriteString(app, "count")
				assert.NoError(t, err)
				assert.NoError(t, app.(*net.TCPConn).CloseWrite())
				got, err := io.ReadAll(app)
				assert.NoError(t, err)
				assert.Equal(t, "count", string(got))
				_ = app.Close()
			}
		})
	}
	wg.Wait()
	for name, side := range map[string]*records{"node": r.node, "gateway": r.gate} {
		require.Eventually(t, func() bool {
			got, _ := side.all()
			return len(got) == workers*each
		}, waitTime, tickTime, name)
		got, _ := side.all()
		for _, f := range got {
			require.False(t, f.Truncated, "%s: %s", name, f.Reason)
			require.EqualValues(t, [2]uint64{5, 5}, [2]uint64{f.Up, f.Down}, name)
		}
	}
}
