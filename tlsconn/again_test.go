package tlsconn_test

import (
	"context"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tlsconn"
)

// TestEvidenceIsNewerThanWhatAskedForIt changes something at the node and asks
// for evidence, again and again, at whatever moment of the exchange before: each
// change is seen by evidence that was collected after it, and the tunnel stays.
func TestEvidenceIsNewerThanWhatAskedForIt(t *testing.T) {
	var state, seen atomic.Uint32 // what the node is, and what the gateway knows of it
	r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, func(r *rig) {
		r.clientC.Attest = func(_ context.Context, s io.ReadWriter, bind func([]byte) ([]byte, error)) error {
			collected := byte(state.Load())
			if _, err := s.Write([]byte{collected}); err != nil {
				return err
			}
			_, err := io.ReadFull(s, make([]byte, 1)) // the verdict
			return err
		}
		r.gatewayC.InsecureNoAttestation = false
		r.gatewayC.Verify = func(_ context.Context, _ tlsconn.Peer, s io.ReadWriter, _ func([]byte) ([]byte, error)) (time.Time, error) {
			got := make([]byte, 1)
			if _, err := io.ReadFull(s, got); err != nil {
				return time.Time{}, err
			}
			seen.Store(uint32(got[0]))
			_, err := s.Write(got)
			return time.Now().Add(time.Hour), err
		}
	})
	r.up()
	for i := range uint32(250) {
		state.Store(i)
		for range 1 + i%3 { // also while one is under way
			require.Equal(t, 1, r.gateway.Reattest(id(t, nodeName)), "the tunnel stays")
		}
		require.Eventually(t, func() bool { return seen.Load() == i }, 5*time.Second, 50*time.Microsecond, "change %d", i)
	}
}

// TestGatewaysEvidenceIsNewerThanWhatAskedForIt is the same for the gateway's
// own evidence, which the node asks for.
func TestGatewaysEvidenceIsNewerThanWhatAskedForIt(t *testing.T) {
	var state, seen atomic.Uint32
	r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, func(r *rig) {
		r.gatewayC.Attest = func(_ context.Context, s io.ReadWriter, _ func([]byte) ([]byte, error)) error {
			if _, err := s.Write([]byte{byte(state.Load())}); err != nil {
				return err
			}
			_, err := io.ReadFull(s, make([]byte, 1)) // the verdict
			return err
		}
		r.clientC.Verify = func(_ context.Context, _ tlsconn.Peer, s io.ReadWriter, _ func([]byte) ([]byte, error)) (time.Time, error) {
			got := make([]byte, 1)
			if _, err := io.ReadFull(s, got); err != nil {
				return time.Time{}, err
			}
			seen.Store(uint32(got[0]))
			_, err := s.Write(got)
			return time.Now().Add(time.Hour), err
		}
	})
	r.up()
	for i := range uint32(250) {
		state.Store(i)
		for range 1 + i%3 {
			r.client.Reattest()
		}
		require.Eventually(t, func() bool { return seen.Load() == i }, 5*time.Second, 50*time.Microsecond, "change %d", i)
	}
	_, events := r.node.all()
	for _, e := range events {
		require.NotEqual(t, "cut", e.Type, e.Reason)
	}
}
