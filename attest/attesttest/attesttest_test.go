package attesttest_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/trusttree/trusttree/attest/attesttest"
	"github.com/trusttree/trusttree/internal/tpm"
)

func newTPM(t *testing.T) *attesttest.TPM {
	t.Helper()
	m, err := attesttest.NewMaker()
	require.NoError(t, err)
	d, err := m.NewTPM()
	require.NoError(t, err)
	return d
}

func TestInterposerMisbehavesAsTold(t *testing.T) {
	d := newTPM(t)
	i := attesttest.Interpose(d)
	random := tpm2.GetRandom{BytesRequested: 16}
	i.Inject(tpm2.TPMCCGetRandom, 1, 1, attesttest.Drop())
	i.Inject(tpm2.TPMCCGetRandom, 0, 1, attesttest.Answer(tpm2.TPMRCLockout))
	i.Inject(0, 0, 1, attesttest.Truncate(7))
	i.Inject(0, 0, 1, attesttest.Corrupt(-1))

	_, err := random.Execute(i) // the drop waits for the second
	assert.ErrorIs(t, err, tpm2.TPMRCLockout)
	_, err = random.Execute(i)
	assert.ErrorIs(t, err, attesttest.ErrLost)
	rsp, err := i.Send([]byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7B, 0, 16})
	require.NoError(t, err)
	assert.Len(t, rsp, 7)
	_, err = random.Execute(i)
	require.NoError(t, err)
	log := i.Recorded()
	require.Len(t, log, 4)
	assert.Empty(t, log[1].Response)
	assert.Len(t, log[3].Response, 28)
	_, err = random.Execute(i)
	require.NoError(t, err, "all faults are spent")
}

func TestRetryFromTheTPMIsSurvived(t *testing.T) {
	d := newTPM(t)
	i := attesttest.Interpose(d)
	i.Inject(tpm2.TPMCCGetRandom, 0, 3, attesttest.Answer(tpm2.TPMRCRetry))
	_, err := tpm2.GetRandom{BytesRequested: 8}.Execute(tpm.Wrap(i))
	require.NoError(t, err)
	assert.Len(t, i.Recorded(), 4)
}

func TestPowerCutBetweenCommandAndResponse(t *testing.T) {
	for _, after := range []bool{false, true} {
		d := newTPM(t)
		i := attesttest.Interpose(d)
		i.Inject(tpm2.TPMCCHierarchyChanegAuth, 0, 1, attesttest.CutPower(d, after))
		_, err := tpm2.HierarchyChangeAuth{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			NewAuth: tpm2.TPM2BAuth{Buffer: []byte("new")}}.Execute(i)
		require.ErrorIs(t, err, attesttest.ErrLost)
		_, err = tpm2.GetRandom{BytesRequested: 8}.Execute(i)
		require.Error(t, err, "no power")
		require.NoError(t, d.Reboot())
		_, err = tpm2.CreatePrimary{PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(d)
		assert.Equal(t, after, err != nil, "what the TPM acknowledged to itself stays")
	}
}

func TestBootIsReplacedByTheNext(t *testing.T) {
	d := newTPM(t)
	one, two := sha256.Sum256([]byte("one")), sha256.Sum256([]byte("two"))
	for _, m := range [][]byte{one[:], two[:], one[:]} {
		require.NoError(t, d.Boot(attesttest.Measurement{PCR: 4, Digests: map[crypto.Hash][]byte{crypto.SHA256: m}}))
		got, err := tpm.ReadPCRs(d, crypto.SHA256, 4)
		require.NoError(t, err)
		want := sha256.Sum256(append(make([]byte, 32), m...))
		assert.Equal(t, want[:], got[4])
	}
	assert.Error(t, d.Boot(attesttest.Measurement{PCR: 99, Digests: map[crypto.Hash][]byte{crypto.SHA256: one[:]}}))
	assert.Error(t, d.Boot(attesttest.Measurement{PCR: 4, Digests: map[crypto.Hash][]byte{crypto.SHA256: one[:5]}}))
}

func TestStartupLocalityIsWherePCR0Begins(t *testing.T) {
	d := newTPM(t)
	event := sha256.Sum256([]byte("CRTM"))
	for _, locality := range []byte{0, 3, 4} {
		require.NoError(t, d.BootAt(int(locality), attesttest.Measurement{PCR: 0, Digests: map[crypto.Hash][]byte{crypto.SHA256: event[:]}}))
		got, err := tpm.ReadPCRs(d, crypto.SHA256, 0)
		require.NoError(t, err)
		want := sha256.Sum256(append(append(make([]byte, 31), locality), event[:]...))
		assert.Equal(t, want[:], got[0])
	}
	assert.Error(t, d.BootAt(2))
	assert.Error(t, d.BootAt(9))
	require.NoError(t, d.Reboot())
}

func TestServedTPMIsOpenedAsASocketAndKeptInADirectory(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir := t.TempDir()
	m, err := attesttest.OpenMaker(dir)
	require.NoError(t, err)
	var first []byte
	for round := range 2 {
		again, err := attesttest.OpenMaker(dir)
		require.NoError(t, err)
		assert.True(t, again.Root.Equal(m.Root))
		d, err := again.OpenTPM(filepath.Join(dir, "tpm"))
		require.NoError(t, err)
		l, err := net.Listen("unix", filepath.Join(dir, "sock"))
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Serve(ctx, l) }()
		client, err := tpm.Open(ctx, "unix:"+l.Addr().String())
		require.NoError(t, err)
		srk, err := tpm.SRK(client, nil)
		require.NoError(t, err)
		if round == 0 {
			first = srk.Name.Buffer
		}
		assert.True(t, bytes.Equal(first, srk.Name.Buffer), "the seeds were kept")
		require.NoError(t, srk.Flush())
		other, err := net.Dial("unix", l.Addr().String())
		require.NoError(t, err)
		_, err = other.Write([]byte("this is no TPM command"))
		require.NoError(t, err)
		_, err = other.Read(make([]byte, 1))
		assert.Error(t, err, "closed")
		_ = other.Close()
		cancel()
		select {
		case err := <-done:
			require.NoError(t, err)
		case <-time.After(time.Second):
			t.Fatal(errors.New("Serve goes on after its context"))
		}
		_ = client.Close()
	}
}
