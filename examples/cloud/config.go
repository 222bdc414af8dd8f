package main

import (
	"errors"
	"fmt"
	"net"
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
}

func loadConfig(state string) (*config, error) {
	name := filepath.Join(state, "cloud.json")
	data, err := wire.ReadCapped(name, maxConfig)
	if err != nil {
		return nil, fmt.Errorf("%w (make the state directory with: cloud init -state DIR)", err)
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
	if c.AttestSeconds <= 0 || c.LeaseSeconds <= 0 {
		return errors.New("attest_seconds and lease_seconds must be positive")
	}
	return nil
}
