package city

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

// Domain is the city's trust domain.
const Domain = "city.example"

// Tenant is a tenant and the stream of every node that is its.
type Tenant struct{ Name, Stream string }

// Config says what to found.
type Config struct {
	// Dir holds all state; Bin the binaries of Build.
	Dir, Bin string
	Tenants  []Tenant
	// Postgres is the connection string that the instances share; with none
	// there is one instance.
	Postgres string
	Clouds   int
	// Host returns the address of an instance or a node; nil means 127.0.0.1.
	Host func(name string) string
	// Command makes the command that runs a binary where name lives; nil means
	// here. Listen and Dial do the same for the parts that are emulated and for
	// the operator.
	Command func(name, binary string, args ...string) *exec.Cmd
	Listen  func(name, address string) (net.Listener, error)
	Dial    func(ctx context.Context, network, address string) (net.Conn, error)
	// EditCloud changes an instance's configuration before it starts.
	EditCloud func(name string, cfg map[string]any)
}

// Cloud is one instance.
type Cloud struct {
	Name, State string
	// Addresses of its services.
	Enroll, Gateway, API, Page, Status string
	Proc                               *Proc
}

// City is everything that runs.
type City struct {
	cfg    Config
	Clouds []*Cloud
	Owner  *Operator
	Maker  *attesttest.Maker
	// CameraCA and AirCA make modules; ForeignCA makes modules of the same kind
	// that nobody here trusts.
	CameraCA, AirCA, ForeignCA *moduleidtest.CA

	nodes  []*Node
	policy []byte // PCR policy of the first software
	serial uint64 // of the assignments in force
}

// Build compiles the real binaries into dir.
func Build(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", dir+"/",
		"github.com/trusttree/trusttree/examples/cloud", "github.com/trusttree/trusttree/examples/node")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build node and cloud (inside the checkout): %w\n%s", err, out)
	}
	return nil
}

// Found makes the parties and the instances' state directories. Nothing runs
// yet. Close ends all that was started since.
func Found(ctx context.Context, cfg Config) (*City, error) {
	if cfg.Host == nil {
		cfg.Host = func(string) string { return "127.0.0.1" }
	}
	if cfg.Command == nil {
		cfg.Command = func(_, binary string, args ...string) *exec.Cmd { return exec.Command(binary, args...) }
	}
	if cfg.Listen == nil {
		cfg.Listen = func(_, address string) (net.Listener, error) { return net.Listen("tcp", address) }
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	c := &City{cfg: cfg, serial: 1}
	c.Owner = &Operator{c}
	var err error
	if c.Maker, err = attesttest.NewMaker(); err != nil {
		return nil, err
	}
	for _, ca := range []struct {
		ca   **moduleidtest.CA
		name string
	}{{&c.CameraCA, "Camera works"}, {&c.AirCA, "Air sensor works"}, {&c.ForeignCA, "Somebody else"}} {
		if *ca.ca, err = moduleidtest.NewCA(ca.name); err != nil {
			return nil, err
		}
	}
	for i := range max(cfg.Clouds, 1) {
		if err := c.makeCloud(ctx, i); err != nil {
			return nil, err
		}
	}
	return c, c.configureCloud()
}

// Path returns a path in the city's directory.
func (c *City) Path(elem ...string) string {
	return filepath.Join(append([]string{c.cfg.Dir}, elem...)...)
}

func (c *City) makeCloud(ctx context.Context, i int) error {
	name := fmt.Sprintf("cloud-%d", i+1)
	host := c.cfg.Host(name)
	ports, err := freePorts("enroll", "gateway", "api", "page", "status")
	if err != nil {
		return err
	}
	at := func(service string) string { return net.JoinHostPort(host, ports[service]) }
	cloud := &Cloud{Name: name, State: c.Path(name), Enroll: at("enroll"), Gateway: at("gateway"), API: at("api"),
		Page: "127.0.0.1:" + ports["page"], Status: "127.0.0.1:" + ports["status"]}
	args := []string{"init", "-domain", Domain}
	if i > 0 {
		args = []string{"join", "-from", c.Clouds[0].State}
	}
	args = append(args, "-state", cloud.State, "-host", host, "-enroll-port", ports["enroll"], "-gateway-port", ports["gateway"], "-api-port", ports["api"])
	if c.cfg.Postgres != "" {
		args = append(args, "-instance", name)
		if i == 0 {
			args = append(args, "-postgres", c.cfg.Postgres)
		}
	}
	cmd := exec.CommandContext(ctx, filepath.Join(c.cfg.Bin, "cloud"), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cloud %s: %w\n%s", args[0], err, out)
	}
	c.Clouds = append(c.Clouds, cloud)
	return nil
}

// configureCloud pins the makers and publishes the reference values of the
// first software.
func (c *City) configureCloud() error {
	first := c.Clouds[0].State
	makers := map[string][]*x509.Certificate{
		"tpm-makers":           c.makers(),
		"module-makers/camera": {c.CameraCA.Certificate},
		"module-makers/air":    {c.AirCA.Certificate},
	}
	for sub, certs := range makers {
		dir := filepath.Join(first, sub)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		for i, cert := range certs {
			if err := writePEM(filepath.Join(dir, fmt.Sprintf("%d.pem", i)), cert); err != nil {
				return err
			}
		}
	}
	for _, cloud := range c.Clouds {
		err := EditJSON(filepath.Join(cloud.State, "cloud.json"), func(m map[string]any) {
			m["connectors"] = map[string]string{"bay-1": "camera", "bay-2": "air"}
			m["attest_seconds"] = 120
			m["listen_status"] = cloud.Status
			if c.cfg.EditCloud != nil {
				c.cfg.EditCloud(cloud.Name, m)
			}
		})
		if err != nil {
			return err
		}
	}
	reference, policy, err := c.ReferenceValues(GoodBoot, 1)
	if err != nil {
		return err
	}
	c.policy = policy
	return os.WriteFile(filepath.Join(first, "reference", "1.0.0.json"), reference, 0o600)
}

// makers are the certificates of the TPM's maker.
func (c *City) makers() []*x509.Certificate {
	return append([]*x509.Certificate{c.Maker.Root}, c.Maker.Intermediates...)
}

// StartCloud starts an instance and waits until it serves.
func (c *City) StartCloud(ctx context.Context, i int) error {
	cloud := c.Clouds[i]
	args := []string{"serve", "-state", cloud.State, "-insecure-loopback-page", cloud.Page}
	var err error
	cloud.Proc, err = Start(cloud.Name, c.Path(cloud.Name+".log"), c.cfg.Command(cloud.Name, filepath.Join(c.cfg.Bin, "cloud"), args...))
	if err != nil {
		return err
	}
	_, err = cloud.Proc.Await(ctx, 0, 30*time.Second, "event", "cloud.ready")
	return err
}

// CreateTenants makes the tenants, once an instance runs.
func (c *City) CreateTenants(ctx context.Context) error {
	for _, t := range c.cfg.Tenants {
		if err := c.Owner.CreateTenant(ctx, t.Name); err != nil {
			return err
		}
	}
	return nil
}

// Close stops everything.
func (c *City) Close() error {
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, n.close())
	}
	for _, cloud := range c.Clouds {
		errs = append(errs, cloud.Proc.Stop())
	}
	return errors.Join(errs...)
}

func writeJSON(name string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, data, 0o600)
}

// EditJSON changes a JSON file.
func EditJSON(name string, edit func(map[string]any)) error {
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

// freePorts finds loopback ports that nobody listens on.
func freePorts(names ...string) (map[string]string, error) {
	ports := map[string]string{}
	for _, n := range names {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		_, ports[n], _ = net.SplitHostPort(ln.Addr().String())
	}
	return ports, nil
}

// FreeAddress finds a loopback address that nobody listens on.
func FreeAddress() (string, error) {
	ports, err := freePorts("one")
	return "127.0.0.1:" + ports["one"], err
}
