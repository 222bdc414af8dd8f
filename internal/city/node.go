package city

import (
	"bufio"
	"context"
	"crypto"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/attesttest"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/bootpolicy"
	"github.com/trusttree/trusttree/secureboot/eventlog"
	"github.com/trusttree/trusttree/update/boot"
)

// SlotSize is how large each software slot is, in bytes.
const SlotSize = 4 << 20

// Links of the tree of trust in the order in which a node proves them, but for
// those of its streams.
var Links = []string{"tpm", "modules", "identity", "system volume", "attested", "tunnel", "data volume"}

// Node is one node with its hardware.
type Node struct {
	Name, Dir string
	TPM       *attesttest.TPM
	Device    string // the device ID
	Proc      *Proc

	c           *City
	bus         *server // the socket at which the daemon finds its TPM
	camera, air *server
	cameraAt    string
	airAt       string
	log         []byte // of the boot that Power made last
}

// Path returns a path in the node's directory.
func (n *Node) Path(elem ...string) string {
	return filepath.Join(append([]string{n.Dir}, elem...)...)
}

// NewNode makes a node: a TPM, two modules, the configuration, the pinned
// makers, the PCR policy of its first software, two software slots, and a
// bootstrap.json with a token of its own. An instance must be running. edit
// changes the configuration; it may be nil.
func (c *City) NewNode(ctx context.Context, name string, edit func(map[string]any)) (*Node, error) {
	n := &Node{Name: name, Dir: c.Path(name), c: c}
	var err error
	if n.TPM, err = c.Maker.NewTPM(); err != nil {
		return nil, err
	}
	ports, err := freePorts("camera", "air")
	if err != nil {
		return nil, err
	}
	n.cameraAt, n.airAt = "127.0.0.1:"+ports["camera"], "127.0.0.1:"+ports["air"]
	for _, d := range []string{"state", "run", "policies"} {
		if err := os.MkdirAll(n.Path(d), 0o700); err != nil {
			return nil, err
		}
	}
	c.nodes = append(c.nodes, n)
	if err := errors.Join(n.PlugCamera(ctx, c.CameraCA), n.plugAir(ctx)); err != nil {
		return nil, err
	}
	if err := os.WriteFile(n.Path("policies", "1.0.0.json"), c.policy, 0o600); err != nil {
		return nil, err
	}
	err = errors.Join(writePEM(n.Path("tpm-makers.pem"), c.makers()...),
		writePEM(n.Path("camera.pem"), c.CameraCA.Certificate), writePEM(n.Path("air.pem"), c.AirCA.Certificate))
	if err != nil {
		return nil, err
	}
	for _, slot := range []string{"slot-a", "slot-b"} {
		if err := os.WriteFile(n.Path(slot), make([]byte, SlotSize), 0o600); err != nil {
			return nil, err
		}
	}
	if err := n.bootstrap(ctx); err != nil {
		return nil, err
	}
	if err := n.configure(edit); err != nil {
		return nil, err
	}
	if err := n.Power(ctx, GoodBoot); err != nil {
		return nil, err
	}
	a, err := attest.Open(ctx, n.TPM, attest.NodeConfig{Endorsers: attest.Endorsers{Anchors: c.makers()}})
	if err != nil {
		return nil, err
	}
	n.Device = a.Device().String()
	return n, nil
}

// bootstrap copies the cloud's bootstrap.json, with a token for this node and
// the addresses of all instances.
func (n *Node) bootstrap(ctx context.Context) error {
	text, err := os.ReadFile(filepath.Join(n.c.Clouds[0].State, "bootstrap.json"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(n.Path("bootstrap.json"), text, 0o600); err != nil {
		return err
	}
	answer, err := n.c.Owner.Call(ctx, 0, http.MethodPost, "/v1/admin/tokens", nil)
	if err != nil {
		return err
	}
	var token map[string]any
	if err := json.Unmarshal(answer, &token); err != nil {
		return err
	}
	return EditJSON(n.Path("bootstrap.json"), func(m map[string]any) {
		m["token"], m["token_expires"] = token["token"], token["token_expires"]
		var gateways, enroll []string
		for _, cloud := range n.c.Clouds[1:] {
			gateways, enroll = append(gateways, cloud.Gateway), append(enroll, "https://"+cloud.Enroll)
		}
		if len(gateways) > 0 {
			m["more_gateways"], m["more_enroll_urls"] = gateways, enroll
		}
	})
}

// Renew gives the node a new token, as its owner does when it may enrol again
// after a revocation. What it had of before is forgotten.
func (n *Node) Renew(ctx context.Context) error {
	if n.Proc != nil {
		n.Proc.Kill()
	}
	return n.bootstrap(ctx)
}

func (n *Node) configure(edit func(map[string]any)) error {
	cloudOnly := map[string]any{"name": "cloud-services", "action": "allow", "peers": []string{"spiffe://" + Domain + "/node/*"},
		"direction": "to-cloud", "proto": "tcp", "services": []string{"ingest", "tuf", "keys", "report"}}
	// The node lets one destination out that the cloud will not allow, so that
	// it can be seen that both ends judge by themselves.
	timeServer := map[string]any{"name": "time-server", "action": "allow", "peers": []string{"spiffe://" + Domain + "/node/*"},
		"direction": "to-cloud", "proto": "tcp", "hosts": []string{"time.city.example"}, "ports": []string{"443"}}
	flows := map[string]any{"version": 1, "serial": 1, "rules": []any{cloudOnly, timeServer}}
	var streams []map[string]any
	for _, t := range n.c.cfg.Tenants {
		streams = append(streams, map[string]any{"name": t.Stream, "every_seconds": 1})
	}
	cfg := map[string]any{
		"version": 1, "state": n.Path("state"), "run": n.Path("run"), "bootstrap": n.Path("bootstrap.json"),
		"tpm": "unix:" + n.Path("tpm.sock"), "tpm_makers": n.Path("tpm-makers.pem"), "event_log": n.Path("event-log"), "boot_id": n.Path("boot-id"),
		"policies": n.Path("policies"), "flows": n.Path("flows.json"), "hardware": "streetlight-1", "channel": "stable",
		"image": "1.0.0", "slots": []string{n.Path("slot-a"), n.Path("slot-b")}, "update_every_seconds": 1, "module_check_seconds": 2,
		"sensors": n.Path("sensors.sock"),
		"modules": []map[string]any{
			{"bay": "bay-1", "class": "camera", "ca": n.Path("camera.pem"), "chip": "atecc", "address": "tcp:" + n.cameraAt},
			{"bay": "bay-2", "class": "air", "ca": n.Path("air.pem"), "chip": "spdm", "address": "tcp:" + n.airAt},
		},
		"streams": streams,
	}
	if edit != nil {
		edit(cfg)
	}
	return errors.Join(writeJSON(n.Path("flows.json"), flows), writeJSON(n.Path("node.json"), cfg))
}

// Power boots the node's hardware with its own TPM: the TPM is reset and given
// the measurements of a real boot, in their order, and the log lies where the
// kernel shows it.
func (n *Node) Power(ctx context.Context, log []byte) error { return n.PowerWith(ctx, n.TPM, log) }

// PowerWith does it with another TPM in its place.
func (n *Node) PowerWith(ctx context.Context, t *attesttest.TPM, log []byte) error {
	n.bus.close()
	if err := Measure(t, log); err != nil {
		return err
	}
	_ = os.Remove(n.Path("tpm.sock"))
	ln, err := net.Listen("unix", n.Path("tpm.sock"))
	if err != nil {
		return err
	}
	n.bus = serve(ctx, ln, t.Serve)
	n.log = log
	if err := n.StartOver(); err != nil {
		return err
	}
	// A reboot clears what is in run.
	if err := errors.Join(os.RemoveAll(n.Path("run")), os.Mkdir(n.Path("run"), 0o700)); err != nil {
		return err
	}
	return os.WriteFile(n.Path("event-log"), log, 0o600)
}

// StartOver gives the machine a new boot ID, as its kernel does when it starts.
func (n *Node) StartOver() error {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	return os.WriteFile(n.Path("boot-id"), fmt.Appendf(nil, "%x-%x-%x-%x-%x\n", b[:4], b[4:6], b[6:8], b[8:10], b[10:]), 0o600)
}

// Measure resets a TPM and gives it the measurements of a boot's log.
func Measure(t *attesttest.TPM, log []byte) error {
	parsed, err := eventlog.Parse(log, nil)
	if err != nil {
		return err
	}
	var measured []attesttest.Measurement
	for e := range parsed.Extends() {
		measured = append(measured, attesttest.Measurement{PCR: e.PCR, Digests: e.Digests})
	}
	return t.Boot(measured...)
}

// Reboot kills the daemon, lets the boot loader choose a slot, and powers the
// hardware on with the log of that slot's software.
func (n *Node) Reboot(ctx context.Context, logs map[string][]byte) (slot string, err error) {
	if n.Proc != nil && n.Proc.Running() {
		n.Proc.Kill()
	}
	slot = "a"
	if _, err := os.Stat(n.Path("state", "boot.json")); err == nil {
		loader, err := boot.NewFile(n.Path("state", "boot.json"), "a", "b")
		if err != nil {
			return "", err
		}
		running, err := loader.Boot(ctx)
		if err != nil {
			return "", err
		}
		slot = string(running)
	}
	return slot, n.Power(ctx, logs[slot])
}

// PlugCamera puts a camera whose chip ca certified into the first connector,
// in place of what is there.
func (n *Node) PlugCamera(ctx context.Context, ca *moduleidtest.CA) error {
	n.PullCamera()
	ln, err := n.c.cfg.Listen(n.Name, n.cameraAt)
	if err != nil {
		return err
	}
	n.camera, err = plugATECC(ctx, ln, ca, "camera of "+n.Name)
	return err
}

// PullCamera leaves the first connector empty.
func (n *Node) PullCamera() {
	n.camera.close()
	n.camera = nil
}

// PullAir leaves the second connector empty.
func (n *Node) PullAir() {
	n.air.close()
	n.air = nil
}

func (n *Node) plugAir(ctx context.Context) error {
	ln, err := n.c.cfg.Listen(n.Name, n.airAt)
	if err != nil {
		return err
	}
	n.air, err = plugSPDM(ctx, ln, n.c.AirCA, "air sensor of "+n.Name)
	return err
}

// Command returns the command that runs the daemon.
func (n *Node) Run() error {
	cmd := n.c.cfg.Command(n.Name, filepath.Join(n.c.cfg.Bin, "node"), "run", "-config", n.Path("node.json"))
	var err error
	n.Proc, err = Start(n.Name, n.c.Path(n.Name+".log"), cmd)
	return err
}

// Start starts the daemon and waits until it has proven the links; none given
// means all, those of its streams too.
func (n *Node) Start(ctx context.Context, links ...string) error {
	if err := n.Run(); err != nil {
		return err
	}
	if len(links) == 0 {
		links = slices.Clone(Links)
		for _, t := range n.c.cfg.Tenants {
			links = append(links, "telemetry "+t.Stream)
		}
	}
	for _, l := range links {
		if _, err := n.Proc.Await(ctx, 0, 40*time.Second, "event", "link.proven", "link", l); err != nil {
			return err
		}
	}
	return nil
}

// Sensor is a local process that leaves records at the node's socket.
type Sensor struct {
	conn net.Conn
	in   *bufio.Scanner
}

// Sensor connects to the node's socket.
func (n *Node) Sensor() (*Sensor, error) {
	conn, err := net.Dial("unix", n.Path("sensors.sock"))
	if err != nil {
		return nil, err
	}
	return &Sensor{conn, bufio.NewScanner(conn)}, nil
}

// Leave leaves one record and waits until it is durable on the node.
func (s *Sensor) Leave(stream string, seq uint64, value any) error {
	line, err := json.Marshal(map[string]any{"stream": stream, "seq": seq, "value": value})
	if err != nil {
		return err
	}
	_ = s.conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := s.conn.Write(append(line, '\n')); err != nil {
		return err
	}
	if !s.in.Scan() {
		return errors.Join(errors.New("the node gave no answer"), s.in.Err())
	}
	var answer struct {
		OK    bool   `json:"ok"`
		Seq   uint64 `json:"seq"`
		Error string `json:"error"`
	}
	if err := json.Unmarshal(s.in.Bytes(), &answer); err != nil {
		return err
	}
	if !answer.OK {
		return errors.New(answer.Error)
	}
	return nil
}

// Close ends the connection.
func (s *Sensor) Close() error { return s.conn.Close() }

func (n *Node) close() error {
	err := n.Proc.Stop()
	for _, s := range []*server{n.bus, n.camera, n.air} {
		s.close()
	}
	return err
}

// volumePCRs are what the volumes are bound to: firmware code, loader, Secure
// Boot state and kernel.
var volumePCRs = []int{0, 2, 4, 7, 11}

// ReferenceValues learns from a boot that the owner knows to be good: an
// appraisal policy for the cloud and a PCR policy for the volumes, each signed
// by the owner's policy key. No TPM is needed for either.
func (c *City) ReferenceValues(log []byte, serial uint64) (reference, pcrPolicy []byte, err error) {
	key, err := LoadKey(filepath.Join(c.Clouds[0].State, "policy.key"))
	if err != nil {
		return nil, nil, err
	}
	parsed, err := eventlog.Parse(log, nil)
	if err != nil {
		return nil, nil, err
	}
	values, err := parsed.Replay(crypto.SHA256)
	if err != nil {
		return nil, nil, err
	}
	policy, err := secureboot.Learn(secureboot.LearnOptions{
		Name: "streetlight", Serial: serial, NotAfter: time.Now().Add(90 * 24 * time.Hour), PinPCR7: true,
		Replay: []int{1, 5}, Ignore: []int{13, 15, 16, 23}, // the module appraiser judges PCR 13
	}, secureboot.Evidence{Bank: crypto.SHA256, PCRs: values, EventLog: log})
	if err != nil {
		return nil, nil, fmt.Errorf("learn reference values: %w", err)
	}
	if reference, err = secureboot.SignPolicy(policy, key); err != nil {
		return nil, nil, err
	}
	bound := map[int][]byte{}
	for _, p := range volumePCRs {
		bound[p] = values[p]
	}
	pcrPolicy, err = bootpolicy.SignPCRs(key, crypto.SHA256, bound)
	return reference, pcrPolicy, err
}
