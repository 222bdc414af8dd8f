package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/secureboot/bootpolicy"
	"github.com/trusttree/trusttree/update/repository"
)

// attackStep is one attack; run returns why it was refused.
type attackStep struct {
	name string
	run  func(context.Context) (why string, err error)
}

// attack runs every attack against the running city. Each returns why it was
// refused; one that is not refused is an error.
func (c *city) attack(ctx context.Context) error {
	attacks := []attackStep{
		{"forbidden destination", c.forbiddenDestination},
		{"the same, cloud side", c.forbiddenByCloud},
		{"cross-tenant read", c.crossTenant},
		{"forged update", c.forgedUpdate},
		{"rolled-back update", c.rolledBackUpdate},
		{"foreign module", c.foreignModule},
		{"stolen disk", c.stolenDisk},
		{"stolen disk and TPM", c.stolenDiskAndTPM},
		{"tampered boot", c.tamperedBoot},
		{"cloned node", c.clonedNode},
	}
	if !c.keep {
		attacks = append(attacks, attackStep{"stolen node, revoked", c.revokedNode})
	}
	for _, a := range attacks {
		why, err := a.run(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
		refused(a.name, c.readable(why))
	}
	if !c.keep {
		return nil
	}
	if err := c.power(ctx, c.tpm, updatedBoot); err != nil {
		return err
	}
	return c.startNode(ctx, false, "attested", "data volume")
}

// readable shortens a reason to what a person reads: one line, short names for
// the demo's directory and the node.
func (c *city) readable(s string) string {
	s = strings.NewReplacer(c.dir+"/", "", c.device, c.device[:8]+"…", "spiffe://"+domain, "").Replace(strings.Join(strings.Fields(s), " "))
	if runes := []rune(s); len(runes) > 260 {
		s = string(runes[:257]) + "..."
	}
	return s
}

// forbiddenDestination connects to the node's forward to a host that the node's
// own policy does not name.
func (c *city) forbiddenDestination(ctx context.Context) (string, error) {
	return c.flow(ctx, c.ports["denied-by-node"], "node")
}

// forbiddenByCloud does it for a host that the node would allow: the cloud
// judges by itself.
func (c *city) forbiddenByCloud(ctx context.Context) (string, error) {
	return c.flow(ctx, c.ports["denied-by-cloud"], "gateway")
}

func (c *city) flow(ctx context.Context, addr, side string) (string, error) {
	mark := c.node.mark()
	conn, err := net.Dial("tcp", addr)
	if err == nil {
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = conn.Write([]byte("hello"))
		if n, _ := conn.Read(make([]byte, 1)); n > 0 {
			return "", errors.New("something answered")
		}
	}
	rec, err := c.node.await(ctx, mark, 5*time.Second, "event", "flow.refused", "decided_by", side)
	if err != nil {
		return "", err
	}
	return rec.str("target") + ": " + rec.str("reason"), nil
}

// crossTenant asks as one tenant for the other's stream, and for one that does
// not exist: the answers must be the same. Then it asks without being anybody.
func (c *city) crossTenant(ctx context.Context) (string, error) {
	_, foreign, err := c.owner.records(ctx, tenants[0], streams[1])
	if err != nil {
		return "", err
	}
	_, absent, err := c.owner.records(ctx, tenants[0], "no-such-stream")
	if err != nil {
		return "", err
	}
	if !bytes.Equal(foreign, absent) || len(bytes.TrimSpace(foreign)) > 2 {
		return "", fmt.Errorf("tenant %s read %q", tenants[0], foreign)
	}
	_, err = c.owner.call(ctx, http.MethodGet, "/v1/records?stream="+streams[0], nil) // an operator is no tenant
	if err == nil || !strings.Contains(err.Error(), "403") {
		return "", fmt.Errorf("an operator read telemetry: %v", err)
	}
	return "looks the same as a stream that does not exist; an operator's certificate is denied as well", nil
}

// forgedUpdate puts an attacker's repository, signed by his own keys, in place
// of the cloud's.
func (c *city) forgedUpdate(ctx context.Context) (string, error) {
	evil := c.path("evil")
	if err := os.MkdirAll(evil+"/keys", 0o700); err != nil {
		return "", err
	}
	if err := newRepository(ctx, evil+"/tuf", evil+"/keys"); err != nil {
		return "", err
	}
	err := publish(ctx, evil+"/tuf", evil+"/keys", "6.6.6", 6, repository.Content{Name: wire.PartImage, Reader: bytes.NewReader(image("6.6.6"))})
	if err != nil {
		return "", err
	}
	// The attacker's versions are made higher than the city's.
	for range 4 {
		if err := bump(ctx, evil+"/tuf", evil+"/keys"); err != nil {
			return "", err
		}
	}
	return c.withRepository(ctx, evil+"/tuf")
}

// rolledBackUpdate serves the city's own repository as it was before.
func (c *city) rolledBackUpdate(ctx context.Context) (string, error) {
	return c.withRepository(ctx, c.path("tuf-before"))
}

// withRepository swaps the cloud's repository, and returns why the node refuses
// what it finds there.
func (c *city) withRepository(ctx context.Context, dir string) (string, error) {
	real, aside := c.path("cloud", "tuf"), c.path("tuf-aside")
	if err := errors.Join(os.Rename(real, aside), os.CopyFS(real, os.DirFS(dir))); err != nil {
		return "", err
	}
	mark := c.node.mark()
	rec, err := c.node.await(ctx, mark, 20*time.Second, "event", "link.lost", "link", "update")
	if err := errors.Join(os.RemoveAll(real), os.Rename(aside, real)); err != nil {
		return "", err
	}
	if err != nil {
		return "", err
	}
	return rec.str("detail"), nil
}

// foreignModule plugs a module of another maker in, with a genuine chip, and
// asks the node for fresh evidence.
func (c *city) foreignModule(ctx context.Context) (string, error) {
	c.camera.close()
	var err error
	if c.camera, err = plugATECC(ctx, c.ports["camera"], c.foreignCA); err != nil {
		return "", err
	}
	mark := c.cloud.mark()
	if _, err := c.owner.call(ctx, http.MethodPost, "/v1/admin/nodes/"+c.device+"/reattest", nil); err != nil {
		return "", err
	}
	why := ""
	for why == "" { // the node first notices that the module it knew is gone
		rec, err := c.cloud.await(ctx, mark, 20*time.Second, "event", "attest.refused", "node", c.device)
		if err != nil {
			return "", err
		}
		if mark = c.cloud.mark(); !strings.Contains(rec.str("reason"), "silent") {
			why = rec.str("reason")
		}
	}
	c.camera.close()
	if c.camera, err = plugATECC(ctx, c.ports["camera"], c.cameraCA); err != nil {
		return "", err
	}
	if _, err := c.cloud.await(ctx, c.cloud.mark(), 40*time.Second, "event", "attest.affirming", "node", c.device); err != nil {
		return "", fmt.Errorf("the genuine module is back, but: %w", err)
	}
	return firstReason(why), nil
}

// policies reads the node's signed PCR policies, which lie in clear on its disk.
func (c *city) policies() ([]fscrypt.BootPolicy, error) {
	key, err := loadKey(c.path("cloud", "policy.key"))
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(c.path("node", "policies"))
	if err != nil {
		return nil, err
	}
	var out []fscrypt.BootPolicy
	for _, e := range entries {
		signed, err := os.ReadFile(c.path("node", "policies", e.Name()))
		if err != nil {
			return nil, err
		}
		p, err := bootpolicy.Signed(key.Public(), signed)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// stolenDisk opens a copy of the system volume with another genuine TPM that
// has booted the very same software.
func (c *city) stolenDisk(ctx context.Context) (string, error) {
	if err := c.node.stop(); err != nil {
		return "", err
	}
	if err := os.CopyFS(c.path("stolen"), os.DirFS(c.path("node", "state"))); err != nil {
		return "", err
	}
	other, err := c.maker.NewTPM()
	if err != nil {
		return "", err
	}
	if err := c.power(ctx, other, updatedBoot); err != nil {
		return "", err
	}
	policies, err := c.policies()
	if err != nil {
		return "", err
	}
	v, err := fscrypt.Open(ctx, c.path("stolen", "system"), fscrypt.Config{}, &fscrypt.TPM{Device: other, Policies: policies})
	return mustFail(ctx, v, err)
}

// stolenDiskAndTPM has the right TPM in the right boot state, without the
// cloud: the system volume opens, the data volume does not.
func (c *city) stolenDiskAndTPM(ctx context.Context) (string, error) {
	if err := c.power(ctx, c.tpm, updatedBoot); err != nil {
		return "", err
	}
	policies, err := c.policies()
	if err != nil {
		return "", err
	}
	guard := fscrypt.All(&fscrypt.TPM{Device: c.tpm, Policies: policies}, &fscrypt.Remote{
		Service:  "spiffe://" + domain + "/gateway",
		Exchange: func(context.Context, []byte) ([]byte, error) { return nil, errors.New("the network is down") },
	})
	v, err := fscrypt.Open(ctx, c.path("stolen", "data"), fscrypt.Config{}, guard)
	return mustFail(ctx, v, err)
}

func mustFail(ctx context.Context, v *fscrypt.Volume, err error) (string, error) {
	if err == nil {
		return "", errors.Join(errors.New("the volume opened"), v.Lock(ctx))
	}
	return err.Error(), nil
}

// tamperedBoot boots the node with Secure Boot switched off: its volumes stay
// closed, and the cloud does not affirm it.
func (c *city) tamperedBoot(ctx context.Context) (string, error) {
	if err := c.power(ctx, c.tpm, tamperedBoot); err != nil {
		return "", err
	}
	mark := c.cloud.mark()
	if err := c.startNode(ctx, false, "identity"); err != nil {
		return "", err
	}
	volume, err := c.node.await(ctx, 0, 20*time.Second, "event", "link.lost", "link", "system volume")
	if err != nil {
		return "", err
	}
	verdict, err := c.cloud.await(ctx, mark, 30*time.Second, "event", "attest.refused", "node", c.device)
	if err != nil {
		return "", err
	}
	return "volume: " + volume.str("detail") + "; cloud: " + firstReason(verdict.str("reason")), c.node.stop()
}

// firstReason cuts a verdict after its first reason.
func firstReason(s string) string {
	first, _, more := strings.Cut(s, "; ")
	if more {
		first += "; …"
	}
	return strings.TrimPrefix(first, "attest: ")
}

// clonedNode copies the node's whole disk, pins and token included, to a node
// with another genuine TPM.
func (c *city) clonedNode(ctx context.Context) (string, error) {
	other, err := c.maker.NewTPM()
	if err != nil {
		return "", err
	}
	if err := c.power(ctx, other, updatedBoot); err != nil {
		return "", err
	}
	// As the disk says, the TPM is a stranger.
	clone, err := start("clone", c.path("clone.log"), c.path("bin", "node"), "run", "-config", c.path("node", "node.json"))
	if err != nil {
		return "", err
	}
	defer func() { _ = clone.stop() }()
	pinned, err := clone.await(ctx, 0, 20*time.Second, "event", "link.lost", "link", "tpm")
	if err != nil {
		return "", err
	}
	// The thief takes the pin out and enrols anew with the token.
	if err := os.Rename(c.path("node", "state", "ek-name"), c.path("ek-name")); err != nil {
		return "", err
	}
	mark := c.cloud.mark()
	again, err := start("clone", c.path("clone.log"), c.path("bin", "node"), "run", "-config", c.path("node", "node.json"))
	if err != nil {
		return "", err
	}
	defer func() { _ = again.stop() }()
	enrol, err := c.cloud.await(ctx, mark, 20*time.Second, "event", "enroll.refused")
	if err != nil {
		return "", err
	}
	err = os.Rename(c.path("ek-name"), c.path("node", "state", "ek-name"))
	return "node: " + firstReason(pinned.str("detail")) + "; cloud: " + enrol.str("reason"), err
}

// revokedNode brings the node back in good order, revokes it, and watches what
// it loses.
func (c *city) revokedNode(ctx context.Context) (string, error) {
	if err := c.power(ctx, c.tpm, updatedBoot); err != nil {
		return "", err
	}
	if err := c.startNode(ctx, false, "attested", "data volume"); err != nil {
		return "", err
	}
	mark, before := c.node.mark(), time.Now()
	if _, err := c.owner.call(ctx, http.MethodPost, "/v1/admin/nodes/"+c.device+"/revoke", nil); err != nil {
		return "", err
	}
	rec, err := c.node.await(ctx, mark, 10*time.Second, "event", "link.lost", "link", "tunnel")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("tunnel gone %d ms after the revocation: %s", time.Since(before).Milliseconds(), rec.str("detail")), nil
}
