package e2e_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/internal/city"
	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/internal/testvm"
	"github.com/trusttree/trusttree/internal/testvm/vminit"
	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/bootpolicy"
	"github.com/trusttree/trusttree/secureboot/eventlog"
	"github.com/trusttree/trusttree/secureboot/predict"
	"github.com/trusttree/trusttree/update/repository"
)

// bootWait bounds each step of a machine, which may run in software emulation
// on a busy processor.
const bootWait = 5 * time.Minute

// hostSeen is the host's address in the machine's network.
const hostSeen = "10.0.2.2"

// TestRealBoot runs the node's binary in a machine that boots under UEFI Secure
// Boot with a TPM, with the cloud outside: the node enrols, attests the boot
// that the firmware measured, and opens volumes that the kernel encrypts. It
// takes a release whose PCR policy and reference values were computed from its
// files, sets BootNext, reboots, and opens the volumes again, without a recovery
// key. The same system with another command line, signed by the same key, gets
// neither volumes nor the cloud.
func TestRealBoot(t *testing.T) {
	if testing.Short() {
		t.Skip("boots machines")
	}
	ctx := t.Context()
	f := foundFleet(t)

	// Release 1: the production line learns from its first boot, the node enrols.
	m := f.power(t, "boot-1")
	device := f.prove(t, m, "tpm", "identity", "system volume", "attested", "tunnel", "data volume")
	for _, volume := range []string{"system", "data"} {
		assert.Empty(t, await(t, m, "event", "vm.diary", "volume", volume).Str("found"), "first boot")
	}
	must(t, f.city.Owner.Assign(ctx, device))
	await(t, m, "event", "link.proven", "link", "telemetry lamp")

	// Release 2: never booted anywhere.
	<-f.provisioned
	f.publishSecond(t)
	await(t, m, "event", "update.armed", "version", "1.1.0")
	await(t, m, "event", "vm.reboot")
	must(t, m.AwaitEnd(ctx, bootWait))

	m = f.power(t, "boot-2")
	assert.Contains(t, await(t, m, "event", "vm.boot").Str("cmdline"), "node.release=2", "BootNext")
	f.prove(t, m, "tpm", "system volume", "attested", "tunnel", "data volume")
	for _, volume := range []string{"system", "data"} {
		assert.Equal(t, vminit.Diary, await(t, m, "event", "vm.diary", "volume", volume).Str("found"), volume)
	}
	committed := await(t, m, "event", "link.proven", "link", "update")
	assert.Contains(t, committed.Str("detail"), "release 1.1.0 runs from slot b, healthy, committed")
	m.Kill()

	// What lies on the disk is ciphertext.
	disk, err := os.ReadFile(f.board.State())
	must(t, err)
	assert.NotContains(t, string(disk), vminit.Diary[:40])

	// The owner's own key signed this one, too: Secure Boot takes it.
	must(t, f.board.WriteSlot("b", f.slot(t, "node.release=2 node.debug")))
	m = f.power(t, "tampered")
	assert.Contains(t, await(t, m, "event", "vm.boot").Str("cmdline"), "node.debug")
	f.refused(t, m, device, "boot.")
	if !testenv.Long() {
		return
	}

	// With Secure Boot off in the firmware's menu, the approved image of slot a is
	// refused, too.
	must(t, f.board.SetSecureBoot(false))
	m = f.power(t, "secure-boot-off")
	f.refused(t, m, device, "boot.sb.disabled")

	// The same machine as it was: nothing was lost.
	must(t, f.board.SetSecureBoot(true))
	m = f.power(t, "repaired")
	f.prove(t, m, "system volume", "attested", "data volume")
	m.Kill()
}

// fleet is a cloud and one board.
type fleet struct {
	city   *city.City
	board  *testvm.Board
	initrd []byte
	policy crypto.Signer // the owner's policy key
	// provisioned is closed when the production line has set what follows.
	provisioned chan struct{}
	learned     *secureboot.Policy
	values      map[int][]byte // PCRs of the first boot
}

func foundFleet(t *testing.T) *fleet {
	ctx := t.Context()
	f := &fleet{board: testvm.NewBoard(t), provisioned: make(chan struct{})}
	bin := build(t)
	var err error
	f.city, err = city.Found(ctx, city.Config{
		Dir: t.TempDir(), Bin: bin, Tenants: tenants[:1],
		Host: func(string) string { return hostSeen },
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, onLoopback(address))
		},
		EditCloud: func(_ string, cfg map[string]any) {
			cfg["connectors"] = map[string]string{}
			for _, key := range []string{"listen_enroll", "listen_gateway", "listen_api", "listen_status"} {
				cfg[key] = onLoopback(cfg[key].(string))
			}
		},
	})
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			keepLogs(t, f.city)
		}
		assert.NoError(t, f.city.Close())
	})
	state := f.city.Clouds[0].State
	f.policy, err = city.LoadKey(filepath.Join(state, "policy.key"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(state, "tpm-makers", "board.pem"), f.makers(), 0o600))
	must(t, f.city.StartCloud(ctx, 0))
	must(t, f.city.CreateTenants(ctx))

	line := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		log, err := io.ReadAll(io.LimitReader(r.Body, 4<<20))
		var files map[string][]byte
		if err == nil {
			files, err = f.provision(log)
		}
		if err != nil {
			t.Error(err)
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		close(f.provisioned)
		_, _ = w.Write(archive(files))
	}))
	t.Cleanup(line.Close)
	_, port, err := net.SplitHostPort(line.Listener.Addr().String())
	must(t, err)

	small := filepath.Join(bin, "node-stripped")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", small, "github.com/trusttree/trusttree/examples/node")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	f.initrd, err = f.board.Initrd(small)
	must(t, err)
	must(t, f.board.WriteSlot("a", f.slot(t, "vm.factory="+net.JoinHostPort(hostSeen, port))))
	return f
}

func onLoopback(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return net.JoinHostPort("127.0.0.1", port)
}

func (f *fleet) makers() (out []byte) {
	for _, c := range f.board.Makers {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// uki makes the system's image.
func (f *fleet) uki(t *testing.T, cmdline string) []byte {
	uki, err := f.board.UKI(t.Context(), testvm.Image{Initrd: f.initrd, Cmdline: "quiet " + cmdline})
	must(t, err)
	return uki
}

// slot makes the content of a software slot.
func (f *fleet) slot(t *testing.T, cmdline string) []byte {
	slot, err := f.board.Slot(t.Context(), f.uki(t, cmdline))
	must(t, err)
	return slot
}

// provision is what the production line does for a node: it learns reference
// values from the log of the first boot, signs them, and gives the node its
// files.
func (f *fleet) provision(log []byte) (map[string][]byte, error) {
	parsed, err := eventlog.Parse(log, nil)
	if err != nil {
		return nil, err
	}
	if f.values, err = parsed.Replay(crypto.SHA256); err != nil {
		return nil, err
	}
	f.learned, err = secureboot.Learn(secureboot.LearnOptions{
		Name: "streetlight", Serial: 1, NotAfter: time.Now().Add(24 * time.Hour), PinPCR7: true,
		Replay: []int{1, 5}, Ignore: []int{10, 13, 15, 16, 23},
	}, secureboot.Evidence{Bank: crypto.SHA256, PCRs: f.values, EventLog: log})
	if err != nil {
		return nil, err
	}
	reference, err := secureboot.SignPolicy(f.learned, f.policy)
	if err != nil {
		return nil, err
	}
	state := f.city.Clouds[0].State
	if err := os.WriteFile(filepath.Join(state, "reference", "1.0.0.json"), reference, 0o600); err != nil {
		return nil, err
	}
	policy, err := f.pcrPolicy(f.values)
	if err != nil {
		return nil, err
	}
	bootstrap, err := os.ReadFile(filepath.Join(state, "bootstrap.json"))
	if err != nil {
		return nil, err
	}
	flows, err := os.ReadFile(filepath.Join(state, "flows.json"))
	if err != nil {
		return nil, err
	}
	config, err := json.MarshalIndent(map[string]any{
		"version": 1, "state": "/state/node", "run": "/run/trusttree", "bootstrap": "/state/bootstrap.json",
		"tpm": "/dev/tpmrm0", "tpm_makers": "/state/tpm-makers.pem", "policies": "/state/policies", "flows": "/state/flows.json",
		"hardware": "streetlight-1", "channel": "stable", "image": "1.0.0", "update_every_seconds": 1,
		"slots": []string{"/dev/slot-a", "/dev/slot-b"}, "boot_entries": map[string]string{"a": "0100", "b": "0101"}, "exit_for_reboot": true,
		"volumes": map[string]any{
			"system": map[string]string{"mode": "kernel", "path": "/state/system"},
			"data":   map[string]string{"mode": "kernel", "path": "/state/data"},
		},
		"streams": []map[string]any{{"name": tenants[0].Stream, "every_seconds": 5}},
	}, "", "  ")
	return map[string][]byte{"bootstrap.json": bootstrap, "flows.json": flows, "tpm-makers.pem": f.makers(), "policies/1.0.0.json": policy, "node.json": config}, err
}

// pcrPolicy signs the boot state in which volumes open: firmware, image, Secure
// Boot.
func (f *fleet) pcrPolicy(values map[int][]byte) ([]byte, error) {
	bound := map[int][]byte{}
	for _, pcr := range []int{0, 2, 4, 7, 11} {
		bound[pcr] = values[pcr]
	}
	return bootpolicy.SignPCRs(f.policy, crypto.SHA256, bound)
}

// publishSecond publishes a release with the PCR policy and the reference values
// of its boot, computed from its files.
func (f *fleet) publishSecond(t *testing.T) {
	uki := f.uki(t, "node.release=2")
	u, err := predict.MeasureUKI(bytes.NewReader(uki), int64(len(uki)), crypto.SHA256)
	must(t, err)
	variant := u.Variant("release 1.1.0", predict.Boot{})
	predicted, err := predict.Values(crypto.SHA256, []secureboot.Component{{Name: "system", Variants: []secureboot.Variant{variant}}})
	must(t, err)
	require.Len(t, predicted, 1)
	values := map[int][]byte{0: f.values[0], 2: f.values[2], 4: predicted[0][4], 7: f.values[7], 11: predicted[0][11]}
	assert.NotEqual(t, f.values[4], values[4])
	policy, err := f.pcrPolicy(values)
	must(t, err)
	next := *f.learned
	next.Serial = 2
	next.Components = append([]secureboot.Component(nil), f.learned.Components...)
	for i, c := range next.Components {
		if c.Name == "system" {
			next.Components[i].Variants = []secureboot.Variant{variant}
		}
	}
	reference, err := secureboot.SignPolicy(&next, f.policy)
	must(t, err)
	slot, err := f.board.Slot(t.Context(), uki)
	must(t, err)
	state := f.city.Clouds[0].State
	must(t, city.Publish(t.Context(), filepath.Join(state, "tuf"), filepath.Join(state, "keys"), "1.1.0", 1, city.Everybody(),
		repository.Content{Name: wire.PartImage, Reader: bytes.NewReader(slot)},
		repository.Content{Name: wire.PartReference, Reader: bytes.NewReader(reference), Opaque: true},
		repository.Content{Name: wire.PartPolicy, Reader: bytes.NewReader(policy), Opaque: true}))
}

// power switches the board on. Its logs outlive a test that fails.
func (f *fleet) power(t *testing.T, name string) *city.Proc {
	cmd, err := f.board.Power(t.Context())
	must(t, err)
	m, err := city.Start(name, f.city.Path(name+".log"), cmd)
	must(t, err)
	start := time.Now()
	t.Cleanup(func() {
		m.Kill()
		if !t.Failed() {
			return
		}
		if console, err := os.ReadFile(f.board.Console()); err == nil {
			_ = os.WriteFile(f.city.Path("console-"+name+".log"), console, 0o600)
		}
	})
	await(t, m, "event", "vm.boot")
	t.Logf("%s: the kernel is up after %.1f s, %.1f s of processor time", name, time.Since(start).Seconds(), processorTime(cmd.Process.Pid))
	return m
}

// processorTime is what a process has used, in seconds; 0 where Linux does not
// tell.
func processorTime(pid int) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, ok := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if err != nil || !ok || len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100 // USER_HZ
}

func await(t *testing.T, m *city.Proc, pairs ...string) city.Record {
	t.Helper()
	r, err := m.Await(t.Context(), 0, bootWait, pairs...)
	must(t, err)
	return r
}

// prove waits until the node has proven links, and returns its device ID.
func (f *fleet) prove(t *testing.T, m *city.Proc, links ...string) (device string) {
	t.Helper()
	start := time.Now()
	for _, l := range links {
		r := await(t, m, "event", "link.proven", "link", l)
		if l == "tpm" {
			_, rest, _ := strings.Cut(r.Str("detail"), "device ")
			device, _, _ = strings.Cut(rest, ",")
		}
		t.Logf("%s: %s (%.1f s)", l, r.Str("detail"), time.Since(start).Seconds())
	}
	assert.Empty(t, m.Records(0, "event", "vm.closed", "volume", "system"))
	return device
}

// refused waits until a boot has got neither volumes nor the cloud, and switches
// the board off.
func (f *fleet) refused(t *testing.T, m *city.Proc, device, code string) {
	t.Helper()
	lost := await(t, m, "event", "link.lost", "link", "system volume")
	t.Logf("system volume: %s", lost.Str("detail"))
	closed := await(t, m, "event", "vm.closed", "volume", "system")
	assert.Equal(t, "true", closed.Str("enokey"), "%v", closed)
	assert.NotContains(t, closed.Str("names"), "diary")
	refused := await(t, m, "event", "link.lost", "link", "attested")
	assert.Contains(t, refused.Str("detail"), code)
	t.Logf("attested: %s", refused.Str("detail"))
	for _, l := range []string{"system volume", "data volume", "attested", "tunnel"} {
		assert.Empty(t, m.Records(0, "event", "link.proven", "link", l), l)
	}
	assert.Empty(t, m.Records(0, "event", "vm.exposed"))
	reason := awaitCloud(t, f.city, "event", "attest.refused", "node", device)
	t.Logf("the cloud: %s", reason)
	m.Kill()
}

func archive(files map[string][]byte) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, data := range files {
		if w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(data))}) == nil {
			_, _ = w.Write(data)
		}
	}
	if err := w.Close(); err != nil {
		panic(fmt.Sprint("archive in memory: ", err))
	}
	return b.Bytes()
}
