package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/bootpolicy"
	"github.com/trusttree/trusttree/secureboot/eventlog"
)

// slotSize is how large each software slot is.
const slotSize = 4 << 20

// volumePCRs are what the volumes are bound to: firmware code, loader, Secure
// Boot state and kernel.
var volumePCRs = []int{0, 2, 4, 7, 11}

// referenceValues learns from a boot that the owner knows to be good: an
// appraisal policy for the cloud and a PCR policy for the volumes, each signed
// by the owner's policy key. No TPM is needed for either.
func (c *city) referenceValues(log []byte, serial uint64) (reference, pcrPolicy []byte, err error) {
	key, err := loadKey(c.path("cloud", "policy.key"))
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

// links of the tree of trust in the order in which the node proves them.
var links = []struct{ name, title string }{
	{"tpm", "TPM"},
	{"modules", "modules"},
	{"identity", "identity"},
	{"system volume", "system volume"},
	{"attested", "boot attested"},
	{"tunnel", "tunnel"},
	{"data volume", "data volume"},
	{"telemetry lamp", "tenant lighting"},
	{"telemetry no2", "tenant environment"},
}

// startNode starts the node's daemon and waits for the links given.
func (c *city) startNode(ctx context.Context, show bool, names ...string) (err error) {
	if c.node, err = start("node", c.nodeLog(), c.path("bin", "node"), "run", "-config", c.path("node", "node.json")); err != nil {
		return err
	}
	for _, l := range links {
		if len(names) > 0 && !contains(names, l.name) {
			continue
		}
		rec, err := c.node.await(ctx, 0, 30*time.Second, "event", "link.proven", "link", l.name)
		if err != nil {
			return err
		}
		if show {
			ok("%-19s %s", l.title, rec.str("detail"))
		}
	}
	return nil
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

// grow boots the node for the first time and shows every link.
func (c *city) grow(ctx context.Context) error {
	if err := c.power(ctx, c.tpm, goodBoot); err != nil {
		return err
	}
	n, err := attest.Open(ctx, c.tpm, attest.NodeConfig{Endorsers: attest.Endorsers{Anchors: append([]*x509.Certificate{c.maker.Root}, c.maker.Intermediates...)}})
	if err != nil {
		return err
	}
	c.device = n.Device().String()
	if err := c.owner.assign(ctx, c.device); err != nil {
		return err
	}
	if err := c.startNode(ctx, true); err != nil {
		return err
	}
	return c.showInstances(ctx)
}

// showInstances reads each tenant's records as that tenant, and looks at the
// disk: one encrypted instance for each.
func (c *city) showInstances(ctx context.Context) error {
	var counts []string
	for i, t := range tenants {
		records, _, err := c.owner.records(ctx, t, streams[i])
		if err != nil {
			return err
		}
		if len(records) == 0 {
			return fmt.Errorf("tenant %s has no records", t)
		}
		counts = append(counts, fmt.Sprintf("%s reads %d of its records", t, len(records)))
	}
	files := 0
	err := filepath.WalkDir(c.path("cloud", "store"), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		files++
		data, err := os.ReadFile(path)
		if err == nil && (strings.Contains(string(data), `"lux"`) || strings.Contains(string(data), "SQLite format 3")) {
			err = fmt.Errorf("%s holds clear text", path)
		}
		return err
	})
	if err != nil {
		return err
	}
	ok("%-19s %s; %d files, none of which holds clear text", "instances", strings.Join(counts, ", "), files)
	return nil
}
