package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/trusttree/trusttree/examples/wire"
)

// maxConfig bounds the configuration file, in bytes.
const maxConfig = 64 << 10

// config is cloud.json in the state directory: strict JSON, an unknown key is
// an error. `cloud serve -check` parses it, with all that it names, and stops.
type config struct {
	Version     int    `json:"version"`
	TrustDomain string `json:"trust_domain"`
	Enroll      string `json:"listen_enroll"`  // host:port, TLS; nodes without a certificate yet
	Gateway     string `json:"listen_gateway"` // host:port, tunnels
	API         string `json:"listen_api"`     // host:port, mutual TLS; tenants and operators
	PCRs        []int  `json:"pcrs"`           // PCRs that every quote must cover
	Bank        string `json:"bank"`           // sha256 or sha384
	// AttestSeconds is how long an Attestation Result counts.
	AttestSeconds int `json:"attest_seconds"`
	// LeaseSeconds is how long a node may use its data volume's share.
	LeaseSeconds int `json:"lease_seconds"`
	// Connectors says which class of module must be in which connector.
	Connectors map[string]string `json:"connectors"`
	// OptionalConnectors is the same for connectors that may be empty. What is
	// in one must prove itself all the same.
	OptionalConnectors map[string]string `json:"optional_connectors,omitempty"`
	// Status is a loopback host:port without TLS for /healthz, /readyz and
	// /metrics; empty for none. Operators get /metrics at the API, too.
	Status string `json:"listen_status,omitempty"`
	// Instance names this process among several that share one PostgreSQL.
	Instance string `json:"instance,omitempty"`
	// Shared is the state directory of the first instance: what is not in this
	// one (keys, certificates, releases, reference values) is read there.
	Shared string `json:"shared,omitempty"`
	// Postgres is the connection string of a role that may create roles and
	// databases; empty keeps everything under the state directory.
	Postgres string `json:"postgres,omitempty"`
	// Schemas keeps each tenant in a schema instead of a database of its own.
	Schemas bool `json:"postgres_schemas,omitempty"`
	// Transit is where the tenants' keys are kept, instead of the directory kek.
	Transit *transitConfig `json:"transit,omitempty"`
	// MaxDestination is how many flows the whole fleet may have open to one
	// destination that the gateway relays to; 0 means 256.
	MaxDestination int `json:"max_flows_per_destination,omitempty"`
}

// transitConfig is a transit secrets engine of OpenBao or Vault.
type transitConfig struct {
	Address string `json:"address"`
	Mount   string `json:"mount,omitempty"`
	Token   string `json:"token_file"`      // read anew for each use, so that it can be rotated
	Roots   string `json:"roots,omitempty"` // PEM file; the system's roots when empty
	// InsecureHTTP allows an address without TLS, for a sidecar on the loopback.
	InsecureHTTP bool `json:"insecure_http,omitempty"`
}

// file returns the path of a file of the state: of this instance's directory
// or, where it is not there, of the first instance's.
func (c *config) file(state string, name ...string) string {
	own := filepath.Join(append([]string{state}, name...)...)
	if c.Shared == "" {
		return own
	}
	if _, err := os.Lstat(own); err == nil {
		return own
	}
	return filepath.Join(append([]string{c.Shared}, name...)...)
}

func loadConfig(state string) (*config, error) {
	name := filepath.Join(state, "cloud.json")
	data, err := wire.ReadCapped(name, maxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w (make the state directory with: cloud init -state DIR)", err)
	}
	if err != nil {
		return nil, err
	}
	var c config
	if err := wire.Decode(data, maxConfig, &c); err != nil {
		return nil, wire.Usage("%s: %w", name, err)
	}
	if err := c.check(); err != nil {
		return nil, wire.Usage("%s: %w", name, err)
	}
	return &c, nil
}

// loopback reports whether addr is host:port with a literal loopback address.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && ip != nil && ip.IsLoopback()
}

func (c *config) check() error {
	if c.Version != 1 {
		return fmt.Errorf("version %d, this program reads 1", c.Version)
	}
	if c.TrustDomain == "" {
		return errors.New("trust_domain is missing")
	}
	for name, addr := range map[string]string{"listen_enroll": c.Enroll, "listen_gateway": c.Gateway, "listen_api": c.API} {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if c.Bank != "sha256" && c.Bank != "sha384" {
		return fmt.Errorf("bank %q is neither sha256 nor sha384", c.Bank)
	}
	if len(c.PCRs) == 0 {
		return errors.New("pcrs is empty: a quote over nothing proves nothing")
	}
	if c.Status != "" && !loopback(c.Status) {
		return fmt.Errorf("listen_status %q: it has no TLS, so only a loopback address will do, such as 127.0.0.1:8449", c.Status)
	}
	if c.Postgres != "" && c.Instance == "" {
		return errors.New("instance is missing: with postgres, each process needs a name of its own, such as cloud-1")
	}
	if c.Postgres == "" && (c.Shared != "" || c.Instance != "") {
		return errors.New("shared and instance need postgres: the embedded store belongs to one process")
	}
	if c.Shared != "" && !filepath.IsAbs(c.Shared) {
		return fmt.Errorf("shared %q must be an absolute path", c.Shared)
	}
	for connector, class := range c.OptionalConnectors {
		if _, ok := c.Connectors[connector]; ok {
			return fmt.Errorf("connector %q is in connectors and in optional_connectors: may it be empty, or not?", connector)
		}
		if class == "" {
			return fmt.Errorf("optional_connectors: %q has no class", connector)
		}
	}
	for connector, class := range c.Connectors {
		if class == "" {
			return fmt.Errorf("connectors: %q has no class", connector)
		}
	}
	if c.Transit != nil && (c.Transit.Address == "" || c.Transit.Token == "") {
		return errors.New("transit needs address and token_file")
	}
	if c.MaxDestination < 0 {
		return errors.New("max_flows_per_destination is negative")
	}
	if c.AttestSeconds <= 0 || c.LeaseSeconds <= 0 {
		return errors.New("attest_seconds and lease_seconds must be positive")
	}
	return nil
}
