package fscrypt_test

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	agetest "c2sp.org/CCTV/age"
	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

// TestMain also serves as the program through which tpm2-tools reach a test's
// TPM: what comes in goes to the socket that the variable names, and back.
func TestMain(m *testing.M) {
	if socket := os.Getenv("FSCRYPT_TEST_TPM"); socket != "" {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			os.Exit(1)
		}
		go func() {
			_, _ = io.Copy(conn, os.Stdin)
			os.Exit(0)
		}()
		_, _ = io.Copy(os.Stdout, conn)
		os.Exit(0)
	}
	otherProcess()
	goleak.VerifyTestMain(m)
}

// tools returns a function that runs a tpm2-tools program against a TPM, in a
// directory.
func tools(t *testing.T, dev transport.TPM, dir string) func(args ...string) []byte {
	testenv.Tool(t, "tpm2_unseal", "tpm2-tools")
	self, err := os.Executable()
	require.NoError(t, err)
	socket := serveTPM(t, dev)
	return func(args ...string) []byte {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "FSCRYPT_TEST_TPM="+socket, "TPM2TOOLS_TCTI=cmd:"+self, "TSS2_LOG=all+NONE")
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		require.NoError(t, cmd.Run(), "%v: %s", args, errs.String())
		return out.Bytes()
	}
}

// serveTPM lets other processes use a TPM through a socket.
func serveTPM(t *testing.T, dev transport.TPM) (socket string) {
	socket = filepath.Join(t.TempDir(), "tpm")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			for {
				head := make([]byte, 10)
				if _, err := io.ReadFull(conn, head); err != nil {
					break
				}
				cmd := make([]byte, binary.BigEndian.Uint32(head[2:]))
				copy(cmd, head)
				if _, err := io.ReadFull(conn, cmd[10:]); err != nil {
					break
				}
				rsp, err := dev.Send(cmd)
				if err != nil {
					break
				}
				if _, err := conn.Write(rsp); err != nil {
					break
				}
			}
			_ = conn.Close()
		}
	}()
	return socket
}

// persist makes the storage root key persistent, where tpm2-tools find it.
func persist(t testing.TB, dev transport.TPM) {
	srk, err := tpm.SRK(dev, nil)
	require.NoError(t, err)
	_, err = tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: srk.Named(), PersistentHandle: tpm.HandleSRK}.Execute(dev)
	require.NoError(t, err)
	require.NoError(t, srk.Flush())
}

func TestTPM2ToolsUnsealWhatWeSealAndTheReverse(t *testing.T) {
	dev, _ := tpmtest.New(t)
	boot(t, dev, "image 1")
	persist(t, dev)
	dir := t.TempDir()
	run := tools(t, dev, dir)
	file := func(name string, b []byte) { require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o600)) }
	sized := func(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }
	unsized := func(name string) []byte { return read(t, filepath.Join(dir, name))[2:] }
	p := &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{imagePCRs("image 1")}, UnsafeNoLatch: true}
	b := fscrypt.Binding{Volume: "v", Label: "l", Slot: "s"}

	key := []byte("0123456789abcdef0123456789abcdef")
	s, err := fscrypt.NewSecret(bytes.Clone(key))
	require.NoError(t, err)
	slot, err := p.Wrap(t.Context(), s, b)
	require.NoError(t, err)
	var data map[string]any
	require.NoError(t, json.Unmarshal(slot.Data, &data))
	var blobs struct{ Public, Private []byte }
	require.NoError(t, json.Unmarshal(slot.Data, &blobs))
	file("pub", sized(blobs.Public))
	file("priv", sized(blobs.Private))
	run("tpm2_load", "-Q", "-C", "0x81000001", "-u", "pub", "-r", "priv", "-c", "sealed.ctx")
	run("tpm2_flushcontext", "-t")
	run("tpm2_startauthsession", "-Q", "--policy-session", "-S", "session.ctx")
	run("tpm2_policypcr", "-Q", "-S", "session.ctx", "-l", "sha256:7,11", "-L", "pcr.policy")
	got := run("tpm2_unseal", "-c", "sealed.ctx", "-p", "session:session.ctx")
	assert.Equal(t, key, got)
	run("tpm2_flushcontext", "session.ctx")
	run("tpm2_flushcontext", "-t")
	assert.Equal(t, imagePCRs("image 1").Digest(), read(t, filepath.Join(dir, "pcr.policy")))

	file("secret", []byte("what tpm2-tools sealed to 7 + 11"))
	run("tpm2_create", "-Q", "-C", "0x81000001", "-L", "pcr.policy", "-i", "secret", "-u", "pub2", "-r", "priv2", "-a", "fixedtpm|fixedparent|adminwithpolicy|noda")
	run("tpm2_flushcontext", "-t")
	data["public"], data["private"] = unsized("pub2"), unsized("priv2")
	slot.Data, err = json.Marshal(data)
	require.NoError(t, err)
	out, err := p.Unwrap(t.Context(), slot, b)
	require.NoError(t, err)
	require.NoError(t, out.Use(func(k []byte) error { assert.Equal(t, "what tpm2-tools sealed to 7 + 11", string(k)); return nil }))
}

// TestStockAgeOpensARecoverySlot lets the age program open the slot, and
// checks that it holds the volume key.
func TestStockAgeOpensARecoverySlot(t *testing.T) {
	tool := testenv.Tool(t, "age", "age")
	id, err := age.GenerateX25519Identity() // Debian's age is older than post-quantum recipients
	require.NoError(t, err)
	dir := t.TempDir()
	vol := filepath.Join(dir, "v")
	v, err := fscrypt.Create(t.Context(), vol, loose, &fscrypt.Recovery{Recipients: []age.Recipient{id.Recipient()}, InsecureClassicRecipients: true})
	require.NoError(t, err)
	lock(t, v)
	var h struct {
		Slots []struct {
			Data struct{ Age []byte }
		}
	}
	require.NoError(t, json.Unmarshal(read(t, filepath.Join(vol, ".fscrypt", "header.a")), &h))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "slot.age"), h.Slots[0].Data.Age, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "key"), []byte(id.String()), 0o600))
	key, err := exec.Command(tool, "-d", "-i", filepath.Join(dir, "key"), filepath.Join(dir, "slot.age")).Output()
	require.NoError(t, err)
	require.Len(t, key, 32)
	v, err = fscrypt.Open(t.Context(), vol, fscrypt.Config{}, known{"recovery", key})
	require.NoError(t, err, "what age printed is the volume key")
	lock(t, v)
}

// TestStockAgeOpensAHybridRecoverySlot lets the age program of the version that
// this module requires open a post-quantum slot: Debian's is older.
func TestStockAgeOpensAHybridRecoverySlot(t *testing.T) {
	goTool := testenv.Tool(t, "go", "golang")
	version, err := exec.Command(goTool, "list", "-m", "-f", "{{.Version}}", "filippo.io/age").Output()
	require.NoError(t, err)
	bin := t.TempDir()
	install := exec.Command(goTool, "install", "filippo.io/age/cmd/age@"+string(bytes.TrimSpace(version)), "filippo.io/age/cmd/age-keygen@"+string(bytes.TrimSpace(version)))
	install.Env = append(os.Environ(), "GOBIN="+bin, "GOFLAGS=")
	if out, err := install.CombinedOutput(); err != nil {
		testenv.Missing(t, "the modules of the age program: "+string(out))
	}
	dir := t.TempDir()
	identity := filepath.Join(dir, "key")
	require.NoError(t, exec.Command(filepath.Join(bin, "age-keygen"), "-pq", "-o", identity).Run())
	public, err := exec.Command(filepath.Join(bin, "age-keygen"), "-y", identity).Output()
	require.NoError(t, err)
	require.True(t, bytes.HasPrefix(public, []byte("age1pq1")), string(public))
	recipients, err := age.ParseRecipients(bytes.NewReader(public))
	require.NoError(t, err)
	vol := filepath.Join(dir, "v")
	v, err := fscrypt.Create(t.Context(), vol, loose, &fscrypt.Recovery{Recipients: recipients})
	require.NoError(t, err)
	lock(t, v)
	u, err := fscrypt.Inspect(vol)
	require.NoError(t, err)
	var slot struct{ Age []byte }
	require.NoError(t, json.Unmarshal(u.Slots[0].Data, &slot))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "slot.age"), slot.Age, 0o600))
	key, err := exec.Command(filepath.Join(bin, "age"), "-d", "-i", identity, filepath.Join(dir, "slot.age")).Output()
	require.NoError(t, err)
	require.Len(t, key, 32)
	v, err = fscrypt.Open(t.Context(), vol, fscrypt.Config{}, known{"recovery", key})
	require.NoError(t, err, "what age printed is the volume key")
	lock(t, v)
	// And what the program makes, this package's identities open.
	require.NoError(t, os.WriteFile(filepath.Join(dir, "secret"), bytes.Repeat([]byte("k"), 32), 0o600))
	made, err := exec.Command(filepath.Join(bin, "age"), "-r", string(bytes.TrimSpace(public)), filepath.Join(dir, "secret")).Output()
	require.NoError(t, err)
	ids, err := age.ParseIdentities(bytes.NewReader(read(t, identity)))
	require.NoError(t, err)
	data, err := json.Marshal(map[string][]byte{"age": made})
	require.NoError(t, err)
	s, err := (&fscrypt.Recovery{Identities: ids}).Unwrap(t.Context(), fscrypt.Slot{ID: "x", Type: "recovery", Data: data}, fscrypt.Binding{})
	require.NoError(t, err)
	require.NoError(t, s.Use(func(b []byte) error { assert.Equal(t, bytes.Repeat([]byte("k"), 32), b); return nil }))
}

// TestTPM2ToolsSatisfyTheCounterClause: tpm2-tools compute the policy of a slot
// that a counter revokes, and unseal it as long as the counter stands.
func TestTPM2ToolsSatisfyTheCounterClause(t *testing.T) {
	dev, _ := tpmtest.New(t)
	boot(t, dev, "image 1")
	persist(t, dev)
	dir := t.TempDir()
	run := tools(t, dev, dir)
	vol := filepath.Join(dir, "v")
	p := &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{imagePCRs("image 1")}, UnsafeNoLatch: true, Revocation: revocationIndex}
	v, err := fscrypt.Create(t.Context(), vol, loose, p)
	require.NoError(t, err)
	defer lock(t, v)
	u, err := fscrypt.Inspect(vol)
	require.NoError(t, err)
	var slot struct {
		Public, Private []byte
		Revocation      struct{ Limit uint64 }
	}
	require.NoError(t, json.Unmarshal(u.Slots[0].Data, &slot))
	file := func(name string, b []byte) { require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o600)) }
	sized := func(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }
	file("pub", sized(slot.Public))
	file("priv", sized(slot.Private))
	file("limit", binary.BigEndian.AppendUint64(nil, slot.Revocation.Limit))
	index := fmt.Sprintf("0x%x", uint32(revocationIndex))
	run("tpm2_load", "-Q", "-C", "0x81000001", "-u", "pub", "-r", "priv", "-c", "sealed.ctx")
	run("tpm2_flushcontext", "-t")
	run("tpm2_startauthsession", "-Q", "--policy-session", "-S", "session.ctx")
	run("tpm2_policypcr", "-Q", "-S", "session.ctx", "-l", "sha256:7,11")
	run("tpm2_policynv", "-Q", "-S", "session.ctx", "-C", index, "-i", "limit", index, "ule", "-L", "policy")
	key := run("tpm2_unseal", "-c", "sealed.ctx", "-p", "session:session.ctx")
	run("tpm2_flushcontext", "session.ctx")
	run("tpm2_flushcontext", "-t")
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](slot.Public)
	require.NoError(t, err)
	assert.Equal(t, pub.AuthPolicy.Buffer, read(t, filepath.Join(dir, "policy")))
	again, err := fscrypt.OpenOn(t.Context(), diskOf(t, vol), fscrypt.Config{}, known{"tpm", key})
	require.NoError(t, err, "what tpm2-tools unsealed is the volume key")
	lock(t, again)
}

// diskOf is a copy of a volume.
func diskOf(t *testing.T, dir string) *crashFS {
	d := newCrashFS()
	require.NoError(t, filepath.WalkDir(filepath.Join(dir, ".fscrypt"), func(name string, e fs.DirEntry, err error) error {
		rel, rerr := filepath.Rel(filepath.Join(dir, ".fscrypt"), name)
		require.NoError(t, errors.Join(err, rerr))
		if e.IsDir() {
			d.dirs[rel] = true
			return nil
		}
		d.files[rel] = &inode{data: read(t, name)}
		return nil
	}))
	return d
}

// known is a protector that has the key already.
type known struct {
	typ string
	key []byte
}

func (k known) Type() string { return k.typ }

func (k known) Wrap(t ctx, _ *fscrypt.Secret, _ fscrypt.Binding) (fscrypt.Slot, error) {
	return fscrypt.Slot{}, t.Err()
}

func (k known) Unwrap(ctx, fscrypt.Slot, fscrypt.Binding) (*fscrypt.Secret, error) {
	return fscrypt.NewSecret(bytes.Clone(k.key))
}

// TestAgeVectors reads the community's age vectors through this package's
// random access path.
func TestAgeVectors(t *testing.T) {
	entries, err := fs.ReadDir(agetest.Vectors, ".")
	require.NoError(t, err)
	n := 0
	for _, e := range entries {
		b, err := fs.ReadFile(agetest.Vectors, e.Name())
		require.NoError(t, err)
		v := parseVector(t, b)
		n++
		t.Run(e.Name(), func(t *testing.T) {
			if v.armored {
				var err error
				if v.file, err = io.ReadAll(armor.NewReader(bytes.NewReader(v.file))); err != nil {
					require.NotEqual(t, "success", v.expect)
					return
				}
			}
			got, err := fscrypt.ReadThroughCache(v.file, v.identities...)
			if v.expect == "success" {
				require.NoError(t, err)
				assert.Equal(t, v.payload, hashHex(got))
				return
			}
			require.Error(t, err, v.expect)
		})
	}
	t.Logf("%d vectors", n)
	require.Greater(t, n, 100)
}

type vector struct {
	armored         bool
	expect, payload string
	identities      []age.Identity
	file            []byte
}

func parseVector(t *testing.T, b []byte) *vector {
	head, file, ok := bytes.Cut(b, []byte("\n\n"))
	require.True(t, ok)
	v := &vector{file: file}
	for line := range bytes.SplitSeq(head, []byte("\n")) {
		key, value, _ := bytes.Cut(line, []byte(": "))
		val := string(value)
		switch string(key) {
		case "expect":
			v.expect = val
		case "payload":
			v.payload = val
		case "armored":
			v.armored = true
		case "compressed":
			z, err := zlib.NewReader(bytes.NewReader(file))
			require.NoError(t, err)
			v.file, err = io.ReadAll(z)
			require.NoError(t, err)
		case "identity":
			ids, err := age.ParseIdentities(bytes.NewReader(value))
			require.NoError(t, err)
			v.identities = append(v.identities, ids...)
		case "passphrase":
			id, err := age.NewScryptIdentity(val)
			require.NoError(t, err)
			id.SetMaxWorkFactor(16)
			v.identities = append(v.identities, id)
		}
	}
	return v
}

func hashHex(b []byte) string {
	h := sha256Sum(b)
	return hex.EncodeToString(h[:])
}
