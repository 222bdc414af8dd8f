package softtpm_test

import (
	"encoding/binary"
	"encoding/json"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/softtpm"
)

var golden = flag.Bool("golden", false, "write testdata/state-v1.json anew")

func open(t *testing.T, dir string) *softtpm.TPM {
	t.Helper()
	tpm, err := softtpm.New(softtpm.Config{Dir: dir})
	require.NoError(t, err)
	startup(t, tpm)
	return tpm
}

func copyDir(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	require.NoError(t, os.CopyFS(to, os.DirFS(dir)))
	return to
}

func counterIndex(t *testing.T, tpm transport.TPM) {
	t.Helper()
	_, err := tpm2.NVDefineSpace{AuthHandle: password(tpm2.TPMRHOwner, ""),
		PublicInfo: nvPublic(0x01800001, tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, NoDA: true, NT: tpm2.TPMNTCounter}, 8, nil)}.Execute(tpm)
	require.NoError(t, err)
}

func count(t *testing.T, tpm transport.TPM) uint64 {
	t.Helper()
	r, err := tpm2.NVRead{AuthHandle: password(tpm2.TPMRHOwner, ""), NVIndex: nvName(tpm, 0x01800001), Size: 8}.Execute(tpm)
	require.NoError(t, err)
	return binary.BigEndian.Uint64(r.Data.Buffer)
}

func TestWhatTheTPMAcknowledgedSurvivesAPowerCut(t *testing.T) {
	dir := t.TempDir()
	tpm := open(t, dir)
	counterIndex(t, tpm)
	last := uint64(0)
	for range 5 {
		_, err := tpm2.NVIncrement{AuthHandle: password(tpm2.TPMRHOwner, ""), NVIndex: nvName(tpm, 0x01800001)}.Execute(tpm)
		require.NoError(t, err)
		again := open(t, copyDir(t, dir)) // as the disk is at this moment
		now := count(t, again)
		assert.Greater(t, now, last)
		assert.Equal(t, count(t, tpm), now)
		last = now
	}
}

func TestNothingIsAcknowledgedThatCanNotBeStored(t *testing.T) {
	dir := t.TempDir()
	tpm := open(t, dir)
	counterIndex(t, tpm)
	name := nvName(tpm, 0x01800001)
	require.NoError(t, os.RemoveAll(dir))
	_, err := tpm2.NVIncrement{AuthHandle: password(tpm2.TPMRHOwner, ""), NVIndex: name}.Execute(tpm)
	require.ErrorIs(t, err, tpm2.TPMRCFailure)
	_, err = tpm2.GetRandom{BytesRequested: 4}.Execute(tpm)
	require.ErrorIs(t, err, tpm2.TPMRCFailure, "until the power is cycled")
}

func TestPowerCutWhileStoringLeavesTheStateBefore(t *testing.T) {
	dir := t.TempDir()
	tpm := open(t, dir)
	counterIndex(t, tpm)
	// What a cut leaves: the old file, and a part of the new one beside it.
	b, err := os.ReadFile(filepath.Join(dir, "tpm.json"))
	require.NoError(t, err)
	torn := filepath.Join(dir, "tpm.json.tmp-1234")
	require.NoError(t, os.WriteFile(torn, b[:len(b)/2], 0o600))
	again := open(t, dir)
	assert.NotEmpty(t, nvName(again, 0x01800001).Name.Buffer)
	_, err = os.Stat(torn)
	assert.ErrorIs(t, err, fs.ErrNotExist)
}

func TestDamagedStateIsRefusedWithWhatToDo(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	name := filepath.Join(dir, "tpm.json")
	good, err := os.ReadFile(name)
	require.NoError(t, err)
	for what, bad := range map[string]string{
		"empty":           "",
		"cut":             string(good[:len(good)-2]),
		"more behind":     string(good) + "{}",
		"unknown field":   strings.Replace(string(good), `"version"`, `"backdoor":1,"version"`, 1),
		"version to come": strings.Replace(string(good), `"version":2`, `"version":3`, 1),
		"no seeds":        strings.Replace(string(good), `"seeds":{`, `"seeds":{"7":"AA=="},"proofs":{`, 1),
		"not JSON":        "\x00\x01\x02",
		"huge":            string(make([]byte, 5<<20)),
	} {
		require.NoError(t, os.WriteFile(name, []byte(bad), 0o600))
		_, err := softtpm.New(softtpm.Config{Dir: dir})
		require.Error(t, err, what)
		assert.Contains(t, err.Error(), "tpm.json", what)
	}
}

func TestStateFileIsPrivate(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	fi, err := os.Stat(filepath.Join(dir, "tpm.json"))
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o600), fi.Mode().Perm())
}

// TestStateOfVersion1IsRead holds the stored format: a TPM with a persistent
// key, a password, an NV index, and the PCRs of an orderly TPM2_Shutdown(STATE).
func TestStateOfVersion1IsRead(t *testing.T) {
	file := filepath.Join("testdata", "state-v1.json")
	clock := func() time.Time { return time.Unix(1700000000, 0) }
	if *golden {
		dir := t.TempDir()
		tpm, err := softtpm.New(softtpm.Config{Dir: dir, Seed: []byte("golden"), Now: clock})
		require.NoError(t, err)
		startup(t, tpm)
		counterIndex(t, tpm)
		_, err = tpm2.NVIncrement{AuthHandle: password(tpm2.TPMRHOwner, ""), NVIndex: nvName(tpm, 0x01800001)}.Execute(tpm)
		require.NoError(t, err)
		p := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}, tpm)
		_, err = tpm2.EvictControl{Auth: password(tpm2.TPMRHOwner, ""), ObjectHandle: tpm2.NamedHandle{Handle: p.ObjectHandle, Name: p.Name}, PersistentHandle: 0x81000001}.Execute(tpm)
		require.NoError(t, err)
		try(tpm2.HierarchyChangeAuth{AuthHandle: password(tpm2.TPMRHEndorsement, ""), NewAuth: tpm2.TPM2BAuth{Buffer: []byte("pw")}}, tpm)
		_, err = tpm2.PCRExtend{PCRHandle: password(7, ""), Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: sha("a")}}}}.Execute(tpm)
		require.NoError(t, err)
		_, err = tpm2.Shutdown{ShutdownType: tpm2.TPMSUState}.Execute(tpm)
		require.NoError(t, err)
		b, err := os.ReadFile(filepath.Join(dir, "tpm.json"))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file, b, 0o644))
	}
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tpm.json"), b, 0o600))
	tpm, err := softtpm.New(softtpm.Config{Dir: dir, Now: clock})
	require.NoError(t, err)
	_, err = tpm2.Startup{StartupType: tpm2.TPMSUState}.Execute(tpm)
	require.NoError(t, err)
	assert.Equal(t, uint64(1), count(t, tpm))
	kept := try(tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(0x81000001)}, tpm)
	same := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}, tpm)
	require.NotEmpty(t, kept.Name.Buffer)
	assert.Equal(t, kept.Name.Buffer, same.Name.Buffer)
	_, err = tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHEndorsement, ""), InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(tpm)
	assert.ErrorIs(t, err, tpm2.TPMRCBadAuth)
	pcr := try(tpm2.PCRRead{PCRSelectionIn: selection(7)}, tpm)
	require.Len(t, pcr.PCRValues.Digests, 1)
	assert.Equal(t, sha(string(make([]byte, 32))+string(sha("a"))), pcr.PCRValues.Digests[0].Buffer)
}

func TestResumeKeepsPCRsAndRestartDoesNot(t *testing.T) {
	for _, resume := range []bool{true, false} {
		tpm, err := softtpm.New(softtpm.Config{})
		require.NoError(t, err)
		startup(t, tpm)
		for _, pcr := range []tpm2.TPMHandle{7, 16} {
			_, err := tpm2.PCRExtend{PCRHandle: password(pcr, ""), Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: sha("a")}}}}.Execute(tpm)
			require.NoError(t, err)
		}
		_, err = tpm2.Shutdown{ShutdownType: tpm2.TPMSUState}.Execute(tpm)
		require.NoError(t, err)
		tpm.PowerOff()
		_, err = tpm.Send([]byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7B, 0, 4})
		require.ErrorIs(t, err, softtpm.ErrPowerOff)
		tpm.PowerOn()
		_, err = tpm2.GetRandom{BytesRequested: 4}.Execute(tpm)
		require.ErrorIs(t, err, tpm2.TPMRCInitialize)
		kind := tpm2.TPMSUClear
		if resume {
			kind = tpm2.TPMSUState
		}
		_, err = tpm2.Startup{StartupType: kind}.Execute(tpm)
		require.NoError(t, err)
		r := try(tpm2.PCRRead{PCRSelectionIn: selection(7, 16)}, tpm)
		require.Len(t, r.PCRValues.Digests, 2)
		assert.Equal(t, resume, string(r.PCRValues.Digests[0].Buffer) != string(make([]byte, 32)))
		assert.Equal(t, make([]byte, 32), r.PCRValues.Digests[1].Buffer, "PCR 16 is kept by nothing")
		// The state is used up: a second resume is a lie.
		tpm.PowerOff()
		tpm.PowerOn()
		_, err = tpm2.Startup{StartupType: tpm2.TPMSUState}.Execute(tpm)
		require.ErrorIs(t, err, tpm2.TPMRCValue)
	}
}

func TestContextsOfAnEarlierBootAreRefused(t *testing.T) {
	tpm, err := softtpm.New(softtpm.Config{})
	require.NoError(t, err)
	startup(t, tpm)
	p := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}, tpm)
	saved, err := tpm2.ContextSave{SaveHandle: p.ObjectHandle}.Execute(tpm)
	require.NoError(t, err)
	tpm.PowerOff()
	tpm.PowerOn()
	startup(t, tpm)
	_, err = tpm2.ContextLoad{Context: saved.Context}.Execute(tpm)
	require.ErrorIs(t, err, tpm2.TPMRCIntegrity)
}

func TestLockoutHealsWithTime(t *testing.T) {
	now := time.Unix(1700000000, 0)
	tpm, err := softtpm.New(softtpm.Config{Now: func() time.Time { return now }})
	require.NoError(t, err)
	startup(t, tpm)
	c := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InSensitive: sensitive("pin", "x"), InPublic: tpm2.New2B(sealTemplate(fixed, nil))}, tpm)
	unseal := func(pin string) error {
		_, err := tpm2.Unseal{ItemHandle: named(c.ObjectHandle, c.Name, tpm2.PasswordAuth([]byte(pin)))}.Execute(tpm)
		return err
	}
	for range 3 {
		require.ErrorIs(t, unseal("no"), tpm2.TPMRCAuthFail)
	}
	require.ErrorIs(t, unseal("pin"), tpm2.TPMRCLockout)
	now = now.Add(999 * time.Second)
	require.ErrorIs(t, unseal("pin"), tpm2.TPMRCLockout)
	now = now.Add(2 * time.Second)
	require.NoError(t, unseal("pin"))
	require.ErrorIs(t, unseal("no"), tpm2.TPMRCAuthFail)
	require.ErrorIs(t, unseal("pin"), tpm2.TPMRCLockout, "one try was forgiven, not all")
}

func FuzzState(f *testing.F) {
	b, err := os.ReadFile(filepath.Join("testdata", "state-v1.json"))
	require.NoError(f, err)
	f.Add(b)
	var fields map[string]json.RawMessage
	require.NoError(f, json.Unmarshal(b, &fields))
	for _, big := range []string{"saved", "persistent", "nv"} {
		delete(fields, big)
		small, err := json.Marshal(fields)
		require.NoError(f, err)
		f.Add(small)
	}
	f.Fuzz(func(t *testing.T, state []byte) {
		tpm, err := softtpm.FromState(state)
		if err != nil {
			return
		}
		startup(t, tpm)
		try(tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x01000000, PropertyCount: 100}, tpm)
		nvName(tpm, 0x01800001)
		try(tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(0x81000001)}, tpm)
	})
}

// TestStateOfVersion2IsRead holds the stored format, which knows what else a
// resume keeps: saved sessions, and the locality of the startup.
func TestStateOfVersion2IsRead(t *testing.T) {
	file := filepath.Join("testdata", "state-v2.json")
	if *update {
		dir := t.TempDir()
		old, err := os.ReadFile(filepath.Join("testdata", "state-v1.json"))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "tpm.json"), old, 0o600))
		tpm, err := softtpm.New(softtpm.Config{Dir: dir, Now: func() time.Time { return time.Unix(1700000000, 0) }})
		require.NoError(t, err)
		_, err = tpm.SendAt(3, []byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0})
		require.NoError(t, err)
		s, _, err := tpm2.HMACSession(tpm, tpm2.TPMAlgSHA256, 16)
		require.NoError(t, err)
		_, err = tpm2.ContextSave{SaveHandle: s.Handle()}.Execute(tpm)
		require.NoError(t, err)
		_, err = tpm2.Shutdown{ShutdownType: tpm2.TPMSUState}.Execute(tpm)
		require.NoError(t, err)
		b, err := os.ReadFile(filepath.Join(dir, "tpm.json"))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file, b, 0o644))
	}
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tpm.json"), b, 0o600))
	tpm, err := softtpm.New(softtpm.Config{Dir: dir, Now: func() time.Time { return time.Unix(1700000000, 0) }})
	require.NoError(t, err)
	_, err = tpm2.Startup{StartupType: tpm2.TPMSUState}.Execute(tpm)
	require.ErrorIs(t, err, tpm2.TPMRCLocality, "it was started at locality 3")
	rsp, err := tpm.SendAt(3, []byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 1})
	require.NoError(t, err)
	require.Equal(t, []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0}, rsp)
	saved := try(tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x03000000, PropertyCount: 9}, tpm)
	list, err := saved.CapabilityData.Data.Handles()
	require.NoError(t, err)
	assert.Equal(t, []tpm2.TPMHandle{0x02000000}, list.Handle)
}
