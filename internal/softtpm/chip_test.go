package softtpm_test

import (
	"encoding/binary"
	"errors"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/softtpm"
	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

// swtpm is a swtpm process as a chip: it waits for TPM2_Startup when it gets
// power, and takes commands at each locality.
type swtpm struct {
	tb       testing.TB
	dir      string
	cmd      *exec.Cmd
	t        *tpm.Device
	locality int
}

// newSwtpm makes a TPM that has power. It skips (fails under CI) without swtpm.
func newSwtpm(tb testing.TB) *swtpm {
	tb.Helper()
	testenv.Tool(tb, "swtpm", "swtpm")
	s := &swtpm{tb: tb, dir: tb.TempDir()}
	tb.Cleanup(s.PowerOff)
	s.PowerOn()
	return s
}

// PowerOn starts the process, unless it runs.
func (s *swtpm) PowerOn() {
	if s.cmd != nil {
		return
	}
	socket := filepath.Join(s.dir, "s")
	s.cmd = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+s.dir, "--server", "type=unixio,path="+socket,
		"--locality", "allow-set-locality", "--flags", "not-need-init")
	s.cmd.SysProcAttr = tpmtest.DieWithParent()
	require.NoError(s.tb, s.cmd.Start())
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		d, err := tpm.Open(s.tb.Context(), "unix:"+socket)
		if err == nil {
			s.t = d
			break
		}
		require.True(s.tb, time.Now().Before(end), "swtpm does not answer: %v", err)
	}
	s.locality = 0
}

// PowerOff kills the process, as a power cut does.
func (s *swtpm) PowerOff() {
	if s.cmd == nil {
		return
	}
	_ = s.t.Close()
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.cmd = nil
}

// SendAt executes one command at a locality, which swtpm is told by a command
// of its own.
func (s *swtpm) SendAt(locality int, command []byte) ([]byte, error) {
	if s.cmd == nil {
		return nil, softtpm.ErrPowerOff
	}
	if locality != s.locality {
		set := append(append([]byte{0x80, 1, 0, 0, 0, 11}, u32(0x20001000)...), byte(locality))
		rsp, err := s.t.Send(set)
		if err != nil {
			return nil, err
		}
		if len(rsp) < 10 || binary.BigEndian.Uint32(rsp[6:]) != 0 {
			return nil, errors.New("swtpm did not take the locality")
		}
		s.locality = locality
	}
	return s.t.Send(command)
}

func newSoft(tb testing.TB) *softtpm.TPM {
	tb.Helper()
	t, err := softtpm.New(softtpm.Config{})
	require.NoError(tb, err)
	return t
}
