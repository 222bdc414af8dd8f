package update_test

import (
	"bytes"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
	"github.com/trusttree/trusttree/update"
)

// nvCutTPM loses power at the nth increment, before or after the TPM did it.
type nvCutTPM struct {
	transport.TPM
	after bool
	armed bool
}

type powerGone struct{}

func (c *nvCutTPM) Send(cmd []byte) ([]byte, error) {
	const nvIncrement = 0x134
	if !c.armed || len(cmd) < 10 || cmd[8] != nvIncrement>>8 || cmd[9] != nvIncrement&0xff {
		return c.TPM.Send(cmd)
	}
	c.armed = false
	if c.after {
		if _, err := c.TPM.Send(cmd); err != nil {
			return nil, err
		}
	}
	panic(powerGone{})
}

func TestTPMFloorsUnderAttack(t *testing.T) {
	dev, _ := tpmtest.New(t)
	dir := t.TempDir()
	open := func(tp transport.TPM, provision bool) update.FloorStore {
		s, err := update.TPMFloors(update.TPMFloorsConfig{TPM: tp, Dir: dir, Provision: provision})
		require.NoError(t, err)
		return s
	}
	_, err := open(dev, true).Load(t.Context())
	require.NoError(t, err)
	s := open(dev, false)
	require.NoError(t, s.Raise(t.Context(), update.Floors{Security: 5}))
	now := snapshotDir(t, dir)

	t.Run("altered with the counter right", func(t *testing.T) {
		defer restoreDir(t, dir, now)
		bad := map[string][]byte{}
		for n, data := range now {
			bad[n] = refloor(t, data)
		}
		restoreDir(t, dir, bad)
		_, err := s.Load(t.Context())
		require.ErrorIs(t, err, update.ErrStateRolledBack)
		require.ErrorContains(t, err, "MAC is wrong")
	})
	t.Run("power cut at the increment", func(t *testing.T) {
		for _, after := range []bool{false, true} {
			c := &nvCutTPM{TPM: dev.Device, after: after, armed: true}
			func() {
				defer func() { require.Equal(t, powerGone{}, recover()) }()
				_ = open(c, false).Raise(t.Context(), update.Floors{Security: 6})
			}()
			f, err := s.Load(t.Context())
			require.NoError(t, err)
			want := uint64(5)
			if after {
				want = 6
			}
			assert.Equal(t, want, f.Security)
			require.NoError(t, s.Raise(t.Context(), update.Floors{Security: 6}))
		}
	})
	t.Run("counter undefined and defined again", func(t *testing.T) {
		pub, err := tpm2.NVReadPublic{NVIndex: tpm.NVUpdateFloor}.Execute(dev)
		require.NoError(t, err)
		_, err = tpm2.NVUndefineSpace{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			NVIndex: tpm2.NamedHandle{Handle: tpm.NVUpdateFloor, Name: pub.NVName}}.Execute(dev)
		require.NoError(t, err)
		_, err = s.Load(t.Context())
		require.ErrorIs(t, err, update.ErrStateRolledBack)
		_, err = open(dev, true).Load(t.Context())
		require.ErrorIs(t, err, update.ErrStateRolledBack, "files without a counter are not provisioned over")
	})
}

// refloor lowers the floor in a state file and makes its checksum right.
func refloor(t *testing.T, data []byte) []byte {
	t.Helper()
	low := bytes.Replace(data, []byte(`"security":5`), []byte(`"security":1`), 1)
	require.NotEqual(t, data, low)
	return recrc(t, low)
}
