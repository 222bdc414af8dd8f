package tlsconn_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tlsconn"
	"github.com/trusttree/trusttree/tlsconn/internal/mux"
)

// captured is a node whose software is the attacker's: it has the certificate
// and speaks the wire protocol as it likes.
type captured struct {
	t *testing.T
	s mux.Session
}

func (r *rig) captured(t *testing.T) *captured {
	c, err := tls.Dial("tcp", r.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"trusttree-tunnel/1"}, Certificates: []tls.Certificate{r.ca.pair("spiffe://city.example/node/66")}})
	require.NoError(t, err)
	s, err := mux.New(c, true, mux.Options{MaxStreams: 16, Window: mux.MinWindow, KeepAlive: time.Minute, WriteTimeout: time.Minute})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Abort(1) })
	return &captured{t, s}
}

func (c *captured) open(frames ...string) mux.Stream {
	c.t.Helper()
	s, err := c.s.Open(context.Background())
	require.NoError(c.t, err)
	_ = s.SetReadDeadline(time.Now().Add(10 * time.Second))
	for _, f := range frames {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(f)))
		_, _ = s.Write(append(b, f...)) // the gateway may have had enough
	}
	return s
}

func (c *captured) reply(s mux.Stream) map[string]any {
	var n uint32
	if binary.Read(s, binary.BigEndian, &n) != nil {
		return nil
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(s, b); err != nil {
		return nil
	}
	var v map[string]any
	require.NoError(c.t, json.Unmarshal(b, &v))
	return v
}

const (
	controlOpen = `{"version":1,"kind":"control"}`
	hello       = `{"version":1,"type":"hello"}`
	flowOpen    = `{"version":1,"kind":"flow","flow":"00112233445566778899aabbccddeeff","proto":"tcp","host":"echo"}`
)

func TestNoStreamBeforeAttested(t *testing.T) {
	r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, func(r *rig) {
		r.gatewayC.InsecureNoAttestation = false
		r.gatewayC.Verify = func(ctx context.Context, _ tlsconn.Peer, s io.ReadWriter, _ func([]byte) ([]byte, error)) (time.Time, error) {
			<-ctx.Done()
			return time.Time{}, ctx.Err()
		}
	})
	r.echo("echo")
	c := r.captured(t)
	ctl := c.open(controlOpen, hello)
	assert.Equal(t, true, c.reply(ctl)["attest"])
	v := c.reply(c.open(flowOpen))
	assert.EqualValues(t, tlsconn.CodeNotAttested, v["code"])
	_ = c.open(`{"version":1,"kind":"attest"}`) // and while evidence is appraised
	v = c.reply(c.open(strings.Replace(flowOpen, "00", "01", 1)))
	assert.EqualValues(t, tlsconn.CodeNotAttested, v["code"])
	r.gate.flow(t, "refusals are audited", func(f tlsconn.FlowRecord) bool {
		return f.Code == tlsconn.CodeNotAttested && f.Verdict == tlsconn.VerdictDenied
	})
}

func TestCapturedNodeBreaksTheProtocol(t *testing.T) {
	for name, first := range map[string][]string{
		"first stream is a flow":      {flowOpen, hello},
		"unknown version":             {`{"version":9,"kind":"control"}`, hello},
		"unknown field":               {`{"version":1,"kind":"control","admin":true}`, hello},
		"no hello":                    {controlOpen, `{"version":1,"type":"attested","until":"2099-01-01T00:00:00Z"}`},
		"attests itself":              {controlOpen, hello, `{"version":1,"type":"attested","until":"2099-01-01T00:00:00Z"}`},
		"asks the gateway for proof":  {controlOpen, hello, `{"version":1,"type":"reattest"}`},
		"frame beyond the size limit": {controlOpen, hello, strings.Repeat("x", 9000)},
		"two values in a frame":       {controlOpen, hello + hello},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, func(r *rig) { r.gatewayC.Limits.OpenTimeout = time.Second })
			r.echo("echo")
			c := r.captured(t)
			c.open(first...)
			select {
			case <-c.s.Done():
			case <-time.After(10 * time.Second):
				t.Fatal("the tunnel stayed")
			}
			require.Eventually(t, func() bool {
				_, events := r.gate.all()
				for _, e := range events {
					if e.Code == tlsconn.CodeProtocol && e.Peer.String() == "spiffe://city.example/node/66" {
						return true
					}
				}
				return false
			}, waitTime, tickTime)
		})
	}
}

func TestSlowStreamsAndTooManyStreams(t *testing.T) {
	r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, func(r *rig) {
		r.gatewayC.Limits.OpenTimeout, r.gatewayC.Limits.MaxStreams = 300*time.Millisecond, 8
	})
	r.echo("echo")
	c := r.captured(t)
	ctl := c.open(controlOpen, hello)
	require.NotNil(t, c.reply(ctl))
	slow, err := c.s.Open(context.Background())
	require.NoError(t, err)
	_, err = slow.Write([]byte{0, 0})
	require.NoError(t, err)
	_ = slow.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err = slow.Read(make([]byte, 1))
	var re *mux.ResetError
	require.ErrorAs(t, err, &re, "an open frame must be whole in time")
	var silent []mux.Stream
	for range 40 {
		s := c.open()
		_, err := s.Write([]byte{0})
		require.NoError(t, err)
		silent = append(silent, s)
	}
	beyond := 0
	for _, s := range silent {
		_, err := s.Read(make([]byte, 1))
		require.ErrorAs(t, err, &re, "no stream stays")
		if re.Code == uint32(tlsconn.CodeLimit) {
			beyond++
		}
	}
	assert.GreaterOrEqual(t, beyond, 40-8, "streams beyond the limit are refused as such")
	conn := r.dial("echo:7") // another node's tunnel goes on
	_ = conn.Close()
}
