package tlsconn_test

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tlsconn"
)

var errRefused = errors.New("boot is not the approved one")

// TestRefusedNodeReadsWhy holds that what the gateway's Verify hook wrote before
// it refused reaches the node, however late the node comes to read it: the cut
// does not overtake it.
func TestRefusedNodeReadsWhy(t *testing.T) {
	const why = "no: enrol again"
	verified, read := make(chan struct{}, 1), make(chan string, 1)
	r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, func(r *rig) {
		r.clientC.Attest = func(_ context.Context, s io.ReadWriter, _ func([]byte) ([]byte, error)) error {
			select {
			case <-verified:
			case <-time.After(waitTime):
			}
			time.Sleep(50 * time.Millisecond) // a reset would be here by now
			got, err := io.ReadAll(s)
			select {
			case read <- string(got):
			default:
			}
			return errors.Join(err, errors.New("the gateway said no"))
		}
		r.gatewayC.InsecureNoAttestation = false
		r.gatewayC.Verify = func(_ context.Context, _ tlsconn.Peer, s io.ReadWriter, _ func([]byte) ([]byte, error)) (time.Time, error) {
			_, err := io.WriteString(s, why)
			select {
			case verified <- struct{}{}:
			default:
			}
			return time.Time{}, errors.Join(errRefused, err)
		}
	})
	select {
	case got := <-read:
		require.Equal(t, why, got)
	case <-time.After(waitTime):
		t.Fatal("the node read nothing")
	}
	e := r.gate.hasEvent(t, "cut", tlsconn.CodeNotAttested)
	require.Contains(t, e.Reason, errRefused.Error(), "the gateway's own reason, though the node left first")
}

// TestRefusedNodeGainsNoTime is a node that keeps the stream of its refusal open
// and asks to be appraised again: its flows end at once, no new one opens, and
// the tunnel is cut within the second.
func TestRefusedNodeGainsNoTime(t *testing.T) {
	var refuse atomic.Bool
	hold := make(chan struct{})
	refusedAt := make(chan time.Time, 1)
	r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, func(r *rig) {
		r.clientC.Attest = func(ctx context.Context, s io.ReadWriter, _ func([]byte) ([]byte, error)) error {
			bad := refuse.Load()
			if _, err := s.Write([]byte{1}); err != nil || !bad {
				return err
			}
			select { // neither reads nor closes
			case <-hold:
			case <-ctx.Done():
			}
			return nil
		}
		r.gatewayC.InsecureNoAttestation = false
		r.gatewayC.Verify = func(_ context.Context, _ tlsconn.Peer, s io.ReadWriter, _ func([]byte) ([]byte, error)) (time.Time, error) {
			if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
				return time.Time{}, err
			}
			if refuse.Load() {
				select {
				case refusedAt <- time.Now():
				default:
				}
				return time.Time{}, errRefused
			}
			return time.Now().Add(time.Hour), nil
		}
	})
	defer close(hold)
	r.echo("echo")
	r.up()
	c := r.dial("echo")
	_, err := io.WriteString(c, "x")
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 1))
	require.NoError(t, err)

	refuse.Store(true)
	require.Equal(t, 1, r.gateway.Reattest(id(t, nodeName)))
	<-refusedAt
	_, err = io.ReadAll(c)
	require.ErrorIs(t, err, tlsconn.ErrNotAttested)
	ctx, cancel := context.WithTimeout(r.ctx(), time.Second)
	defer cancel()
	_, err = r.client.DialContext(ctx, "tcp", "echo")
	require.Error(t, err)
	e := r.gate.hasEvent(t, "cut", tlsconn.CodeNotAttested)
	require.Contains(t, e.Reason, errRefused.Error())
}
