package tlsconn_test

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tlsconn"
)

type (
	attestFunc = func(context.Context, io.ReadWriter, func([]byte) ([]byte, error)) error
	verifyFunc = func(context.Context, tlsconn.Peer, io.ReadWriter, func([]byte) ([]byte, error)) (time.Time, error)
)

// counter is a TCP destination that counts bytes and remembers how it ended.
type counter struct {
	net.Listener
	n   atomic.Int64
	end chan error
}

func newCounter(t *testing.T) *counter {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	c := &counter{Listener: ln, end: make(chan error, 64)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				b := make([]byte, 4096)
				for {
					n, err := conn.Read(b)
					c.n.Add(int64(n))
					if err != nil {
						c.end <- err
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return c
}

func (c *counter) port() string {
	_, p, _ := net.SplitHostPort(c.Addr().String())
	return p
}

// TestLiveTunnelIsCutWithinASecond: every change that takes a tunnel's right
// away reaches the live flow on it: not a byte is delivered a second later, the
// destination sees a reset, and the audit says why.
func TestLiveTunnelIsCutWithinASecond(t *testing.T) {
	leaf := func(r *rig) *x509.Certificate { return r.nodeIdentity.Leaf() }
	var lapse, expiry atomic.Int64 // how far the clock is ahead
	at := func(ahead *atomic.Int64) func() time.Time {
		return func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	}
	for _, c := range []struct {
		name    string
		code    tlsconn.Code
		class   error
		prepare func(*rig)
		act     func(*rig)
	}{
		{"revoked by name", tlsconn.CodeRevoked, tlsconn.ErrRevoked, nil,
			func(r *rig) {
				require.NoError(t, r.gateTrust.Revoke(tlsconn.Revocation{ID: id(t, nodeName), Reason: "stolen"}))
			}},
		{"revoked by key at the node", tlsconn.CodeRevoked, tlsconn.ErrRevoked, nil,
			func(r *rig) {
				p, err := r.client.Wait(r.ctx())
				require.NoError(t, err)
				require.NoError(t, r.nodeTrust.Revoke(tlsconn.Revocation{Key: p.SPKI}))
			}},
		{"on a CRL", tlsconn.CodeRevoked, tlsconn.ErrRevoked, nil,
			func(r *rig) {
				require.NoError(t, r.gateTrust.AddCRL(r.ca.crl(7, time.Now().Add(time.Hour), leaf(r).SerialNumber)))
			}},
		{"CRL lapses", tlsconn.CodeExpired, tlsconn.ErrExpired, func(r *rig) {
			r.gateTrust = r.ca.trust(func(o *tlsconn.TrustOptions) { o.RequireCRL, o.Clock = true, at(&lapse) })
			require.NoError(t, r.gateTrust.AddCRL(r.ca.crl(1, time.Now().Add(10*time.Minute))))
			r.gatewayC.Trust = r.gateTrust
		}, func(r *rig) { lapse.Store(int64(11 * time.Minute)) }},
		{"certificate expires", tlsconn.CodeExpired, tlsconn.ErrExpired, func(r *rig) {
			r.gateTrust = r.ca.trust(func(o *tlsconn.TrustOptions) { o.Clock = at(&expiry) })
			r.gatewayC.Trust = r.gateTrust
		}, func(r *rig) { expiry.Store(int64(61 * time.Minute)) }},
		{"root leaves", tlsconn.CodeUntrusted, tlsconn.ErrUntrusted, nil,
			func(r *rig) { require.NoError(t, r.gateTrust.SetRoots([]*x509.Certificate{newCA(t, "new").cert})) }},
		{"policy at the gateway", tlsconn.CodeDenied, tlsconn.ErrDenied, nil,
			func(r *rig) { require.NoError(t, r.gatePolicy.Set(&tlsconn.Policy{Version: 1, Serial: 2})) }},
		{"policy at the node", tlsconn.CodeDenied, tlsconn.ErrDenied, nil,
			func(r *rig) { require.NoError(t, r.nodePolicy.Set(&tlsconn.Policy{Version: 1, Serial: 2})) }},
		{"attestation withdrawn", tlsconn.CodeNotAttested, tlsconn.ErrNotAttested, nil,
			func(r *rig) { require.Equal(t, 1, r.gateway.Cut(id(t, nodeName), "PCR 7 changed")) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dst := newCounter(t)
			rules := []tlsconn.Rule{loopbackRule(dst.port())}
			opts := []func(*rig){func(r *rig) {
				if c.prepare != nil {
					c.prepare(r)
				}
			}}
			r := newRig(t, rules, opts...)
			conn := r.dial(dst.Addr().String())
			before := dst.n.Load()
			stop := make(chan struct{})
			werr := make(chan error, 1)
			go func() {
				b := make([]byte, 1024)
				for {
					select {
					case <-stop:
						werr <- nil
						return
					default:
					}
					if _, err := conn.Write(b); err != nil {
						werr <- err
						return
					}
					time.Sleep(time.Millisecond)
				}
			}()
			require.Eventually(t, func() bool { return dst.n.Load() > before+4096 }, 5*time.Second, time.Millisecond)
			c.act(r)
			time.Sleep(time.Second)
			at := dst.n.Load()
			time.Sleep(250 * time.Millisecond)
			assert.Equal(t, at, dst.n.Load(), "bytes arrived more than a second after")
			close(stop)
			err := <-werr
			require.Error(t, err)
			assert.ErrorIs(t, err, c.class)
			_, err = conn.Read(make([]byte, 1))
			assert.NotErrorIs(t, err, io.EOF)
			end := <-dst.end
			assert.False(t, errors.Is(end, io.EOF), "the destination saw a clean end: %v", end)
			f := r.gate.flow(t, "gateway's record", func(f tlsconn.FlowRecord) bool { return f.Code == c.code })
			assert.True(t, f.Truncated)
			n := r.node.flow(t, "node's record", func(n tlsconn.FlowRecord) bool { return n.Flow == f.Flow })
			assert.Equal(t, c.code, n.Code)
		})
	}
}

func TestCRLThatSaysLessIsRefused(t *testing.T) {
	ca, other := newCA(t, "city CA"), newCA(t, "city CA") // the same name, another key
	s := ca.trust()
	next := time.Now().Add(time.Hour)
	require.NoError(t, s.AddCRL(ca.crl(5, next, big.NewInt(2))))
	assert.ErrorContains(t, s.AddCRL(ca.crl(4, next)), "older than 5", "rolled back")
	assert.ErrorContains(t, s.AddCRL(ca.crl(5, next)), "loaded already with other content")
	assert.ErrorIs(t, s.AddCRL(other.crl(9, next)), tlsconn.ErrUntrusted)
	assert.Error(t, s.AddCRL([]byte("-----BEGIN X509 CRL-----")))
	require.NoError(t, s.AddCRL(ca.crl(6, next, big.NewInt(2))))
}

func TestNodeIsNotAttested(t *testing.T) {
	nonce := []byte("0123456789abcdef0123456789abcdef")
	good := func(ctx context.Context, s io.ReadWriter, bind func([]byte) ([]byte, error)) error {
		b := make([]byte, len(nonce))
		if _, err := io.ReadFull(s, b); err != nil {
			return err
		}
		k, err := bind(b)
		if err != nil {
			return err
		}
		_, err = s.Write(k)
		return err
	}
	verify := func(ctx context.Context, p tlsconn.Peer, s io.ReadWriter, bind func([]byte) ([]byte, error)) (time.Time, error) {
		if _, err := s.Write(nonce); err != nil {
			return time.Time{}, err
		}
		got := make([]byte, 32)
		if _, err := io.ReadFull(s, got); err != nil {
			return time.Time{}, err
		}
		want, err := bind(nonce)
		if err != nil {
			return time.Time{}, err
		}
		if string(want) != string(got) {
			return time.Time{}, errors.New("evidence is of another session")
		}
		return time.Now().Add(time.Hour), nil
	}
	with := func(a attestFunc, v verifyFunc) func(*rig) {
		return func(r *rig) {
			r.clientC.Attest, r.gatewayC.Verify, r.gatewayC.InsecureNoAttestation = a, v, false
			r.gatewayC.Limits.AttestTimeout = 500 * time.Millisecond
		}
	}
	t.Run("good evidence", func(t *testing.T) {
		r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, with(good, verify))
		r.echo("echo")
		c := r.dial("echo:7")
		assert.False(t, c.(interface{ Peer() tlsconn.Peer }).Peer().AttestedUntil.IsZero())
		require.NoError(t, c.Close())
		r.gate.hasEvent(t, "attested", tlsconn.CodeOK)
		assert.Equal(t, 1, r.gateway.Reattest(id(t, nodeName)))
		require.Eventually(t, func() bool {
			_, ev := r.gate.all()
			n := 0
			for _, e := range ev {
				if e.Type == "attested" {
					n++
				}
			}
			return n == 2
		}, 5*time.Second, 5*time.Millisecond, "re-attested on demand")
		c = r.dial("echo:7")
		require.NoError(t, c.Close())
	})
	silent := func(ctx context.Context, s io.ReadWriter, _ func([]byte) ([]byte, error)) error {
		<-ctx.Done()
		return ctx.Err()
	}
	forged := func(ctx context.Context, s io.ReadWriter, _ func([]byte) ([]byte, error)) error {
		_, err := s.Write(make([]byte, 32)) // a relayed or invented binding
		return err
	}
	for name, a := range map[string]attestFunc{
		"no hook": nil, "silent": silent, "evidence of another session": forged,
		"failing": func(context.Context, io.ReadWriter, func([]byte) ([]byte, error)) error {
			return errors.New("TPM busy")
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, with(a, verify))
			r.echo("echo")
			ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
			defer cancel()
			_, err := r.client.DialContext(ctx, "tcp", "echo:7")
			require.Error(t, err)
			r.gate.hasEvent(t, "cut", tlsconn.CodeNotAttested)
		})
	}
	t.Run("short nonce", func(t *testing.T) {
		short := func(ctx context.Context, p tlsconn.Peer, s io.ReadWriter, bind func([]byte) ([]byte, error)) (time.Time, error) {
			_, err := bind([]byte("short"))
			return time.Now().Add(time.Hour), err
		}
		r := newRig(t, nil, with(silent, short))
		e := r.gate.hasEvent(t, "cut", tlsconn.CodeNotAttested)
		assert.Contains(t, e.Reason, "verifier nonce")
	})
	t.Run("result that has ended", func(t *testing.T) {
		r := newRig(t, nil, with(silent, func(context.Context, tlsconn.Peer, io.ReadWriter, func([]byte) ([]byte, error)) (time.Time, error) {
			return time.Time{}, nil
		}))
		e := r.gate.hasEvent(t, "cut", tlsconn.CodeNotAttested)
		assert.Contains(t, e.Reason, "ended already")
	})
	t.Run("result lapses", func(t *testing.T) {
		var n atomic.Int32
		once := func(ctx context.Context, s io.ReadWriter, bind func([]byte) ([]byte, error)) error {
			if n.Add(1) > 1 {
				<-ctx.Done()
				return ctx.Err()
			}
			return good(ctx, s, bind)
		}
		r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, with(once, func(ctx context.Context, p tlsconn.Peer, s io.ReadWriter, bind func([]byte) ([]byte, error)) (time.Time, error) {
			_, err := verify(ctx, p, s, bind)
			return time.Now().Add(400 * time.Millisecond), err
		}))
		r.up()
		r.gate.hasEvent(t, "cut", tlsconn.CodeNotAttested)
	})
}
