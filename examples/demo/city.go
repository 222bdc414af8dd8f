package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/trusttree/trusttree/attest/attesttest"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
)

// domain is the demo city's trust domain.
const domain = "city.example"

// city is everything that the demo runs.
type city struct {
	dir     string
	started time.Time
	built   time.Time
	keep    bool // leave the node in good order

	maker *attesttest.Maker
	tpm   *attesttest.TPM
	bus   *server // the socket at which the node finds its TPM

	cameraCA, airCA, foreignCA *moduleidtest.CA
	camera                     *server
	air                        *server

	ports map[string]string // of the cloud's services and the node's forwards
	page  string
	cloud *proc
	node  *proc
	owner *operator

	device string // the node's device ID
}

func (c *city) path(elem ...string) string { return filepath.Join(append([]string{c.dir}, elem...)...) }

func (c *city) nodeLog() string { return c.path("node.log") }

// build compiles the real binaries: the demo runs what a vendor would deploy.
func (c *city) build(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", c.path("bin")+"/",
		"github.com/trusttree/trusttree/examples/cloud", "github.com/trusttree/trusttree/examples/node")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build node and cloud (run the demo inside the checkout): %w\n%s", err, out)
	}
	c.built = time.Now()
	ok("examples/node and examples/cloud, %.1f s", time.Since(c.started).Seconds())
	return nil
}

// found makes the parties: TPM maker, module makers, and the cloud with its
// keys, operators and tenants.
func (c *city) found(ctx context.Context) (err error) {
	if c.maker, err = attesttest.NewMaker(); err != nil {
		return err
	}
	if c.tpm, err = c.maker.NewTPM(); err != nil {
		return err
	}
	for _, ca := range []struct {
		ca   **moduleidtest.CA
		name string
	}{{&c.cameraCA, "Camera works"}, {&c.airCA, "Air sensor works"}, {&c.foreignCA, "Somebody else"}} {
		if *ca.ca, err = moduleidtest.NewCA(ca.name); err != nil {
			return err
		}
	}
	if c.ports, err = freePorts("enroll", "gateway", "api", "page", "camera", "air", "denied-by-node", "denied-by-cloud"); err != nil {
		return err
	}
	if err := c.serveModules(ctx); err != nil {
		return err
	}
	ok("a TPM with EK certificates of its maker, two modules with crypto chips")

	init := exec.CommandContext(ctx, c.path("bin", "cloud"), "init", "-state", c.path("cloud"), "-domain", domain,
		"-enroll-port", port(c.ports["enroll"]), "-gateway-port", port(c.ports["gateway"]), "-api-port", port(c.ports["api"]))
	if out, err := init.CombinedOutput(); err != nil {
		return fmt.Errorf("cloud init: %w\n%s", err, out)
	}
	if err := c.configureCloud(); err != nil {
		return err
	}
	c.page = c.ports["page"]
	if c.cloud, err = start("cloud", c.path("cloud.log"), c.path("bin", "cloud"), "serve", "-state", c.path("cloud"), "-insecure-loopback-page", c.page); err != nil {
		return err
	}
	if _, err := c.cloud.await(ctx, 0, 20*time.Second, "event", "cloud.ready"); err != nil {
		return err
	}
	ok("a cloud with its own CA, TUF repository and audit log; operator page http://%s/", c.page)
	if c.owner, err = newOperator(c.path("cloud"), c.ports["api"]); err != nil {
		return err
	}
	for _, tenant := range tenants {
		if err := c.owner.createTenant(ctx, tenant); err != nil {
			return err
		}
	}
	ok("two tenants, %s and %s, each with an instance and a key of its own", tenants[0], tenants[1])
	return nil
}

// configureCloud pins the makers and publishes the reference values of the
// first software.
func (c *city) configureCloud() error {
	makers := map[string][]*x509.Certificate{
		"tpm-makers":           append([]*x509.Certificate{c.maker.Root}, c.maker.Intermediates...),
		"module-makers/camera": {c.cameraCA.Certificate},
		"module-makers/air":    {c.airCA.Certificate},
	}
	for sub, certs := range makers {
		dir := c.path("cloud", sub)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		for i, cert := range certs {
			if err := writePEM(filepath.Join(dir, fmt.Sprintf("%d.pem", i)), cert); err != nil {
				return err
			}
		}
	}
	err := editJSON(c.path("cloud", "cloud.json"), func(m map[string]any) {
		m["connectors"] = map[string]string{"bay-1": "camera", "bay-2": "air"}
		m["attest_seconds"] = 120
	})
	if err != nil {
		return err
	}
	reference, policy, err := c.referenceValues(goodBoot, 1)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.path("cloud", "reference", "1.0.0.json"), reference, 0o600); err != nil {
		return err
	}
	return c.configureNode(policy)
}

// configureNode writes the node's image: configuration, pinned makers, the PCR
// policy of its first software, and two software slots.
func (c *city) configureNode(policy []byte) error {
	for _, d := range []string{"state", "run", "policies"} {
		if err := os.MkdirAll(c.path("node", d), 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(c.path("node", "policies", "1.0.0.json"), policy, 0o600); err != nil {
		return err
	}
	if err := writePEM(c.path("node", "tpm-makers.pem"), append([]*x509.Certificate{c.maker.Root}, c.maker.Intermediates...)...); err != nil {
		return err
	}
	if err := errors.Join(writePEM(c.path("node", "camera.pem"), c.cameraCA.Certificate), writePEM(c.path("node", "air.pem"), c.airCA.Certificate)); err != nil {
		return err
	}
	for _, slot := range []string{"slot-a", "slot-b"} {
		if err := os.WriteFile(c.path("node", slot), make([]byte, slotSize), 0o600); err != nil {
			return err
		}
	}
	// The node lets one destination in that the cloud will not allow, so that
	// the demo can show both ends judge by themselves.
	flows := map[string]any{"version": 1, "serial": 1, "rules": []map[string]any{
		{"name": "cloud-services", "action": "allow", "peers": []string{"spiffe://" + domain + "/node/*"}, "direction": "to-cloud", "proto": "tcp", "services": []string{"ingest", "tuf", "keys", "report"}},
		{"name": "time-server", "action": "allow", "peers": []string{"spiffe://" + domain + "/node/*"}, "direction": "to-cloud", "proto": "tcp", "hosts": []string{"time.city.example"}, "ports": []string{"443"}},
	}}
	cfg := map[string]any{
		"version": 1, "state": c.path("node", "state"), "run": c.path("node", "run"), "bootstrap": c.path("cloud", "bootstrap.json"),
		"tpm": "unix:" + c.path("tpm.sock"), "tpm_makers": c.path("node", "tpm-makers.pem"), "event_log": c.path("node", "event-log"),
		"policies": c.path("node", "policies"), "flows": c.path("node", "flows.json"), "hardware": "streetlight-1", "channel": "stable",
		"image": "1.0.0", "slots": []string{c.path("node", "slot-a"), c.path("node", "slot-b")}, "update_every_seconds": 1,
		"modules": []map[string]string{
			{"bay": "bay-1", "class": "camera", "ca": c.path("node", "camera.pem"), "chip": "atecc", "address": "tcp:" + c.ports["camera"]},
			{"bay": "bay-2", "class": "air", "ca": c.path("node", "air.pem"), "chip": "spdm", "address": "tcp:" + c.ports["air"]},
		},
		"streams": []map[string]any{{"name": "lamp", "every_seconds": 1}, {"name": "no2", "every_seconds": 1}},
		"forwards": []map[string]string{
			{"listen": c.ports["denied-by-node"], "target": "victim.example:443"},
			{"listen": c.ports["denied-by-cloud"], "target": "time.city.example:443"},
		},
	}
	return errors.Join(writeJSON(c.path("node", "flows.json"), flows), writeJSON(c.path("node", "node.json"), cfg))
}

func (c *city) close() error {
	err := errors.Join(c.node.stop(), c.cloud.stop())
	for _, s := range []*server{c.bus, c.camera, c.air} {
		s.close()
	}
	return err
}

func writeJSON(name string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, data, 0o600)
}

func editJSON(name string, edit func(map[string]any)) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var m map[string]any
	if err := json.Unmarshal(data, &m); err != nil {
		return err
	}
	edit(m)
	return writeJSON(name, m)
}

func writePEM(name string, certs ...*x509.Certificate) error {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return os.WriteFile(name, out, 0o600)
}

// freePorts finds loopback addresses that nobody listens on.
func freePorts(names ...string) (map[string]string, error) {
	addrs := map[string]string{}
	for _, n := range names {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		addrs[n] = ln.Addr().String()
	}
	return addrs, nil
}

func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}
