package attest_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

// faulty is a TPM that refuses one command, the one that comes after skip
// others, without carrying it out; how is "code" for an error of the TPM,
// "line" for one of the transport, "cut" for no answer ever after.
type faulty struct {
	transport.TPM
	mu   sync.Mutex
	skip int
	hit  uint32 // command code refused
	how  string
}

const ccFlushContext = 0x165

func (f *faulty) Send(command []byte) ([]byte, error) {
	f.mu.Lock()
	skip := f.skip
	if skip != 0 || f.how != "cut" {
		f.skip--
	}
	f.mu.Unlock()
	if skip != 0 {
		return f.TPM.Send(command)
	}
	f.hit = binary.BigEndian.Uint32(command[6:])
	if f.how != "code" {
		return nil, errors.New("line cut")
	}
	return []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1}, nil // TPM_RC_FAILURE
}

// Whatever command fails, no handle and no session stays in the TPM, and what
// was interrupted works when it is done again.
func TestEveryFailedCommandFlushes(t *testing.T) { onEach(t, tEveryFailedCommandFlushes) }

func tEveryFailedCommandFlushes(t *testing.T, dev *tpmtest.TPM, endorsers attest.Endorsers) {
	keys, err := open(t, dev, attest.NodeConfig{Endorsers: endorsers}).EndorsementKeys(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, keys)
	for _, k := range keys {
		template, pin, steps := k.Template, k.Name, 0
		for _, how := range []string{"code", "line"} {
			for skip := 0; ; skip++ {
				c := newCloud(t, endorsers)
				f := &faulty{TPM: dev.Device, skip: skip, how: how}
				err := everything(t, c, f, pin)
				f.skip = -1
				if f.hit == 0 {
					require.NoError(t, err)
					steps = skip
					break
				}
				if err == nil && f.hit != ccFlushContext {
					continue // a read that may fail: the node found another way
				}
				h, lerr := tpm.LoadedHandles(dev)
				require.NoError(t, lerr)
				if f.hit == ccFlushContext {
					for _, x := range append(h.Transient, h.Sessions...) {
						require.NoError(t, tpm.Flush(dev, x))
					}
					require.Error(t, err, "a handle that stays is reported")
					continue
				}
				require.Zero(t, h.Count(), "%s: command %d (code %x) failed: left %x %x", how, skip, f.hit, h.Transient, h.Sessions)
			}
		}
		assert.Greater(t, steps, 20)
		t.Logf("%s: each of %d commands failed once in two ways", template, steps)
	}
}

// everything is all that a node does with its TPM.
func everything(t *testing.T, c *cloud, tp transport.TPM, pin []byte) error {
	ctx := t.Context()
	n, err := attest.Open(ctx, tp, attest.NodeConfig{EKName: pin})
	if err != nil {
		return err
	}
	key, err := n.DeviceKey(ctx)
	if err != nil {
		return err
	}
	ch, err := c.registrar.Begin(ctx, n.EnrollmentRequest(nil))
	if err != nil {
		return err
	}
	rsp, err := n.Activate(ctx, ch, key)
	if err != nil {
		return err
	}
	e, err := c.registrar.Complete(ctx, rsp)
	if err != nil {
		return err
	}
	if err := n.StoreCertificate(ctx, e, c.roots()); err != nil {
		return err
	}
	im, err := c.registrar.BeginImport(ctx, [][]byte{n.EndorsementKey().Certificate.Raw}, nil)
	if err != nil {
		return err
	}
	irsp, err := n.Import(ctx, im, key)
	if err != nil {
		return err
	}
	if _, err := c.registrar.CompleteImport(ctx, irsp); err != nil {
		return err
	}
	if _, err := n.Certificate(ctx); err != nil {
		return err
	}
	s := session(t, n, key)
	vc, err := c.verifier.Challenge(ctx, s)
	if err != nil {
		return err
	}
	ev, err := n.Evidence(ctx, s, vc)
	if err != nil {
		return err
	}
	_, err = c.verifier.Appraise(ctx, s, ev)
	return err
}

// A power cut at any command of a renewal leaves the old certificate or the
// new one.
func TestPowerCutKeepsACertificate(t *testing.T) {
	onEach(t, func(t *testing.T, dev *tpmtest.TPM, endorsers attest.Endorsers) {
		n := open(t, dev, attest.NodeConfig{Endorsers: endorsers})
		c := newCloud(t, endorsers)
		key, e := c.enroll(n)
		olds, news := 0, 0
		for skip := 0; ; skip++ {
			c.now = c.now.Add(time.Second)
			r, err := c.attest(n, session(t, n, key))
			require.NoError(t, err)
			csr, err := key.CSR()
			require.NoError(t, err)
			next, err := c.registrar.Renew(t.Context(), r, csr)
			require.NoError(t, err)
			f := &faulty{TPM: dev.Device, skip: skip, how: "cut"}
			cut := open(t, dev, attest.NodeConfig{EKName: n.EndorsementKey().Name, Now: func() time.Time { return c.now }})
			attest.SetDevice(cut, f)
			err = cut.StoreCertificate(t.Context(), next, c.roots())
			cert, cerr := n.Certificate(t.Context())
			require.NoError(t, cerr, "cut at command %d", skip)
			switch {
			case bytes.Equal(cert.Certificate[0], next.Chain[0]):
				news++
				e = next
			case bytes.Equal(cert.Certificate[0], e.Chain[0]) && err != nil:
				olds++
			default:
				t.Fatalf("cut at command %d: neither the old nor the new certificate", skip)
			}
			if f.hit == 0 {
				require.NoError(t, err)
				break
			}
		}
		assert.Greater(t, olds, 3)
		assert.Greater(t, news, 1)
	})
}
