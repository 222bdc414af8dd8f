package tlsconn_test

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tlsconn"
)

// TestGatewayIsNotAttested: a node that asks for the gateway's own evidence has
// no flow before it, and loses its tunnel with it. Evidence of another session,
// and the node's own sent back, are refused.
func TestGatewayIsNotAttested(t *testing.T) {
	nonce := []byte("node's nonce, 16 bytes or more")
	proof := func(_ context.Context, s io.ReadWriter, bind func([]byte) ([]byte, error)) error {
		b := make([]byte, len(nonce))
		if _, err := io.ReadFull(s, b); err != nil {
			return err
		}
		k, err := bind(b)
		if err == nil {
			_, err = s.Write(k)
		}
		return err
	}
	appraise := func(valid time.Duration) verifyFunc {
		return func(_ context.Context, p tlsconn.Peer, s io.ReadWriter, bind func([]byte) ([]byte, error)) (time.Time, error) {
			if _, err := s.Write(nonce); err != nil {
				return time.Time{}, err
			}
			got := make([]byte, 32)
			if _, err := io.ReadFull(s, got); err != nil {
				return time.Time{}, err
			}
			want, err := bind(nonce)
			if err != nil || string(want) != string(got) {
				return time.Time{}, errors.Join(errors.New("evidence is of another session or role"), err)
			}
			return time.Now().Add(valid), nil
		}
	}
	with := func(a attestFunc, v verifyFunc) func(*rig) {
		return func(r *rig) {
			r.gatewayC.Attest, r.clientC.Verify = a, v
			r.clientC.Limits.AttestTimeout = 500 * time.Millisecond
		}
	}
	t.Run("good evidence", func(t *testing.T) {
		var n atomic.Int32
		counted := func(ctx context.Context, s io.ReadWriter, bind func([]byte) ([]byte, error)) error {
			n.Add(1)
			return proof(ctx, s, bind)
		}
		r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, with(counted, appraise(time.Hour)))
		r.echo("echo")
		_ = r.dial("echo:7").Close()
		r.client.Reattest()
		require.Eventually(t, func() bool { return n.Load() == 2 }, waitTime, tickTime, "on demand")
		_ = r.dial("echo:7").Close()
	})
	t.Run("on schedule", func(t *testing.T) {
		var n atomic.Int32
		r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, with(func(ctx context.Context, s io.ReadWriter, bind func([]byte) ([]byte, error)) error {
			n.Add(1)
			return proof(ctx, s, bind)
		}, appraise(2*time.Second)))
		r.up()
		require.Eventually(t, func() bool { return n.Load() >= 3 }, waitTime, tickTime)
		_, events := r.node.all()
		for _, e := range events {
			assert.NotEqual(t, "cut", e.Type, e.Reason)
		}
	})
	invented := func(_ context.Context, s io.ReadWriter, _ func([]byte) ([]byte, error)) error {
		_, _ = io.ReadFull(s, make([]byte, len(nonce)))
		_, err := s.Write(make([]byte, 32))
		return err
	}
	for name, a := range map[string]attestFunc{"no hook": nil, "evidence of another session": invented, "silent": func(ctx context.Context, _ io.ReadWriter, _ func([]byte) ([]byte, error)) error {
		<-ctx.Done()
		return ctx.Err()
	}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, with(a, appraise(time.Hour)))
			r.echo("echo")
			ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
			defer cancel()
			_, err := r.client.DialContext(ctx, "tcp", "echo:7")
			require.Error(t, err)
			r.node.hasEvent(t, "cut", tlsconn.CodeNotAttested)
		})
	}
	t.Run("the node's own evidence reflected", func(t *testing.T) {
		// The node's answer to the gateway, for the nonce that the node itself
		// would ask the gateway about, is what a false gateway would send back.
		mine, theirs := make(chan []byte, 1), make(chan []byte, 1)
		r := newRig(t, nil, with(func(_ context.Context, s io.ReadWriter, bind func([]byte) ([]byte, error)) error {
			b, err := bind(nonce)
			theirs <- b
			return errors.Join(err, errors.New("enough"))
		}, func(_ context.Context, _ tlsconn.Peer, _ io.ReadWriter, bind func([]byte) ([]byte, error)) (time.Time, error) {
			b, err := bind(nonce)
			mine <- b
			return time.Now().Add(time.Hour), err
		}), func(r *rig) {
			r.clientC.Attest = func(_ context.Context, s io.ReadWriter, bind func([]byte) ([]byte, error)) error {
				b, err := bind(nonce)
				if err == nil {
					_, err = s.Write(b)
				}
				return err
			}
			r.gatewayC.InsecureNoAttestation = false
			r.gatewayC.Verify = func(_ context.Context, _ tlsconn.Peer, s io.ReadWriter, bind func([]byte) ([]byte, error)) (time.Time, error) {
				got := make([]byte, 32)
				if _, err := io.ReadFull(s, got); err != nil {
					return time.Time{}, err
				}
				assert.NotEqual(t, <-mine, got, "the two roles' bindings of one session and nonce differ")
				want, err := bind(nonce)
				assert.Equal(t, want, got)
				return time.Now().Add(time.Hour), err
			}
		})
		_ = r
		b := <-theirs
		assert.Len(t, b, 32)
		r.gate.hasEvent(t, "attested", tlsconn.CodeOK)
	})
}

// TestResultAboutTheGatewayLapses: when no new evidence comes, the node cuts.
func TestResultAboutTheGatewayLapses(t *testing.T) {
	var n atomic.Int32
	r := newRig(t, nil, func(r *rig) {
		r.clientC.Limits.AttestTimeout = 10 * time.Second
		r.gatewayC.Attest = func(ctx context.Context, s io.ReadWriter, _ func([]byte) ([]byte, error)) error {
			if n.Add(1) > 1 {
				<-ctx.Done()
				return ctx.Err()
			}
			_, err := s.Write([]byte{1})
			return err
		}
		r.clientC.Verify = func(_ context.Context, _ tlsconn.Peer, s io.ReadWriter, _ func([]byte) ([]byte, error)) (time.Time, error) {
			_, err := io.ReadFull(s, make([]byte, 1))
			return time.Now().Add(400 * time.Millisecond), err
		}
	})
	r.up()
	e := r.node.hasEvent(t, "cut", tlsconn.CodeNotAttested)
	assert.Contains(t, e.Reason, "Attestation Result ended")
}
