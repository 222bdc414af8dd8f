package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/internal/city"
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
func (d *demo) attack(ctx context.Context) error {
	attacks := []attackStep{
		{"forbidden destination", d.forbiddenDestination},
		{"the same, cloud side", d.forbiddenByCloud},
		{"cross-tenant read", d.crossTenant},
		{"forged update", d.forgedUpdate},
		{"rolled-back update", d.rolledBackUpdate},
		{"foreign module", d.foreignModule},
		{"stolen disk", d.stolenDisk},
		{"stolen disk and TPM", d.stolenDiskAndTPM},
		{"tampered boot", d.tamperedBoot},
		{"cloned node", d.clonedNode},
	}
	if !d.keep {
		attacks = append(attacks, attackStep{"stolen node, revoked", d.revokedNode})
	}
	for _, a := range attacks {
		why, err := a.run(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
		refused(a.name, d.readable(why))
	}
	if !d.keep {
		return nil
	}
	if err := d.node.Power(ctx, city.UpdatedBoot); err != nil {
		return err
	}
	return d.node.Start(ctx, "attested", "data volume")
}

// readable shortens a reason to what a person reads: one line, short names for
// the demo's directory and the node.
func (d *demo) readable(s string) string {
	s = strings.NewReplacer(d.dir+"/", "", d.node.Device, d.node.Device[:8]+"…", "spiffe://"+city.Domain, "").Replace(strings.Join(strings.Fields(s), " "))
	if runes := []rune(s); len(runes) > 260 {
		s = string(runes[:257]) + "..."
	}
	return s
}

// forbiddenDestination connects to the node's forward to a host that the node's
// own policy does not name.
func (d *demo) forbiddenDestination(ctx context.Context) (string, error) {
	return d.flow(ctx, d.deniedByNode, "node")
}

// forbiddenByCloud does it for a host that the node would allow: the cloud
// judges by itself.
func (d *demo) forbiddenByCloud(ctx context.Context) (string, error) {
	return d.flow(ctx, d.deniedByCloud, "gateway")
}

func (d *demo) flow(ctx context.Context, addr, side string) (string, error) {
	mark := d.node.Proc.Mark()
	conn, err := net.Dial("tcp", addr)
	if err == nil {
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = conn.Write([]byte("hello"))
		if n, _ := conn.Read(make([]byte, 1)); n > 0 {
			return "", errors.New("something answered")
		}
	}
	rec, err := d.node.Proc.Await(ctx, mark, 5*time.Second, "event", "flow.refused", "decided_by", side)
	if err != nil {
		return "", err
	}
	return rec.Str("target") + ": " + rec.Str("reason"), nil
}

// crossTenant asks as one tenant for the other's stream, and for one that does
// not exist: the answers must be the same. Then it asks without being anybody.
func (d *demo) crossTenant(ctx context.Context) (string, error) {
	_, foreign, err := d.city.Owner.Records(ctx, 0, tenants[0].Name, tenants[1].Stream)
	if err != nil {
		return "", err
	}
	_, absent, err := d.city.Owner.Records(ctx, 0, tenants[0].Name, "no-such-stream")
	if err != nil {
		return "", err
	}
	if !bytes.Equal(foreign, absent) || len(bytes.TrimSpace(foreign)) > 2 {
		return "", fmt.Errorf("tenant %s read %q", tenants[0].Name, foreign)
	}
	_, err = d.city.Owner.Call(ctx, 0, http.MethodGet, "/v1/records?stream="+tenants[0].Stream, nil) // an operator is no tenant
	if err == nil || !strings.Contains(err.Error(), "403") {
		return "", fmt.Errorf("an operator read telemetry: %v", err)
	}
	return "looks the same as a stream that does not exist; an operator's certificate is denied as well", nil
}

// forgedUpdate puts an attacker's repository, signed by his own keys, in place
// of the cloud's.
func (d *demo) forgedUpdate(ctx context.Context) (string, error) {
	evil := d.path("evil")
	if err := os.MkdirAll(evil+"/keys", 0o700); err != nil {
		return "", err
	}
	if err := newRepository(ctx, evil+"/tuf", evil+"/keys"); err != nil {
		return "", err
	}
	err := city.Publish(ctx, evil+"/tuf", evil+"/keys", "6.6.6", 6, city.Everybody(), repository.Content{Name: wire.PartImage, Reader: bytes.NewReader(city.Image("6.6.6"))})
	if err != nil {
		return "", err
	}
	// The attacker's versions are made higher than the city's.
	for range 4 {
		if err := bump(ctx, evil+"/tuf", evil+"/keys"); err != nil {
			return "", err
		}
	}
	return d.withRepository(ctx, evil+"/tuf")
}

// rolledBackUpdate serves the city's own repository as it was before.
func (d *demo) rolledBackUpdate(ctx context.Context) (string, error) {
	return d.withRepository(ctx, d.path("tuf-before"))
}

// withRepository swaps the cloud's repository, and returns why the node refuses
// what it finds there.
func (d *demo) withRepository(ctx context.Context, dir string) (string, error) {
	real, aside := d.repository(), d.path("tuf-aside")
	if err := errors.Join(os.Rename(real, aside), os.CopyFS(real, os.DirFS(dir))); err != nil {
		return "", err
	}
	mark := d.node.Proc.Mark()
	rec, err := d.node.Proc.Await(ctx, mark, 20*time.Second, "event", "link.lost", "link", "update")
	if err := errors.Join(os.RemoveAll(real), os.Rename(aside, real)); err != nil {
		return "", err
	}
	if err != nil {
		return "", err
	}
	return rec.Str("detail"), nil
}

// foreignModule plugs a module of another maker in, with a genuine chip, and
// asks the node for fresh evidence.
func (d *demo) foreignModule(ctx context.Context) (string, error) {
	if err := d.node.PlugCamera(ctx, d.city.ForeignCA); err != nil {
		return "", err
	}
	mark := d.cloud().Proc.Mark()
	if _, err := d.city.Owner.Call(ctx, 0, http.MethodPost, "/v1/admin/nodes/"+d.node.Device+"/reattest", nil); err != nil {
		return "", err
	}
	why := ""
	for why == "" { // the node first notices that the module it knew is gone
		rec, err := d.cloud().Proc.Await(ctx, mark, 20*time.Second, "event", "attest.refused", "node", d.node.Device)
		if err != nil {
			return "", err
		}
		if mark = d.cloud().Proc.Mark(); !strings.Contains(rec.Str("reason"), "silent") {
			why = rec.Str("reason")
		}
	}
	if err := d.node.PlugCamera(ctx, d.city.CameraCA); err != nil {
		return "", err
	}
	if _, err := d.cloud().Proc.Await(ctx, d.cloud().Proc.Mark(), 40*time.Second, "event", "attest.affirming", "node", d.node.Device); err != nil {
		return "", fmt.Errorf("the genuine module is back, but: %w", err)
	}
	return firstReason(why), nil
}

// policies reads the node's signed PCR policies, which lie in clear on its disk.
func (d *demo) policies() ([]fscrypt.BootPolicy, error) {
	key, err := city.LoadKey(filepath.Join(d.cloud().State, "policy.key"))
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(d.node.Path("policies"))
	if err != nil {
		return nil, err
	}
	var out []fscrypt.BootPolicy
	for _, e := range entries {
		signed, err := os.ReadFile(d.node.Path("policies", e.Name()))
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
func (d *demo) stolenDisk(ctx context.Context) (string, error) {
	if err := d.node.Proc.Stop(); err != nil {
		return "", err
	}
	if err := os.CopyFS(d.path("stolen"), os.DirFS(d.node.Path("state"))); err != nil {
		return "", err
	}
	other, err := d.city.Maker.NewTPM()
	if err != nil {
		return "", err
	}
	if err := d.node.PowerWith(ctx, other, city.UpdatedBoot); err != nil {
		return "", err
	}
	policies, err := d.policies()
	if err != nil {
		return "", err
	}
	v, err := fscrypt.Open(ctx, d.path("stolen", "system"), fscrypt.Config{}, &fscrypt.TPM{Device: other, Policies: policies})
	return mustFail(ctx, v, err)
}

// stolenDiskAndTPM has the right TPM in the right boot state, without the
// cloud: the system volume opens, the data volume does not.
func (d *demo) stolenDiskAndTPM(ctx context.Context) (string, error) {
	if err := d.node.Power(ctx, city.UpdatedBoot); err != nil {
		return "", err
	}
	policies, err := d.policies()
	if err != nil {
		return "", err
	}
	guard := fscrypt.All(&fscrypt.TPM{Device: d.node.TPM, Policies: policies}, &fscrypt.Remote{
		Service:  "spiffe://" + city.Domain + "/gateway",
		Exchange: func(context.Context, []byte) ([]byte, error) { return nil, errors.New("the network is down") },
	})
	v, err := fscrypt.Open(ctx, d.path("stolen", "data"), fscrypt.Config{}, guard)
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
func (d *demo) tamperedBoot(ctx context.Context) (string, error) {
	if err := d.node.Power(ctx, city.TamperedBoot); err != nil {
		return "", err
	}
	mark := d.cloud().Proc.Mark()
	if err := d.node.Start(ctx, "identity"); err != nil {
		return "", err
	}
	volume, err := d.node.Proc.Await(ctx, 0, 20*time.Second, "event", "link.lost", "link", "system volume")
	if err != nil {
		return "", err
	}
	verdict, err := d.cloud().Proc.Await(ctx, mark, 30*time.Second, "event", "attest.refused", "node", d.node.Device)
	if err != nil {
		return "", err
	}
	return "volume: " + volume.Str("detail") + "; cloud: " + firstReason(verdict.Str("reason")), d.node.Proc.Stop()
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
func (d *demo) clonedNode(ctx context.Context) (string, error) {
	other, err := d.city.Maker.NewTPM()
	if err != nil {
		return "", err
	}
	if err := d.node.PowerWith(ctx, other, city.UpdatedBoot); err != nil {
		return "", err
	}
	// As the disk says, the TPM is a stranger.
	clone, err := city.Start("clone", d.path("clone.log"), exec.Command(d.path("bin", "node"), "run", "-config", d.node.Path("node.json")))
	if err != nil {
		return "", err
	}
	defer func() { _ = clone.Stop() }()
	pinned, err := clone.Await(ctx, 0, 20*time.Second, "event", "link.lost", "link", "tpm")
	if err != nil {
		return "", err
	}
	_ = clone.Stop() // it gives the state directory up
	// The thief takes the pin out and enrols anew with the token.
	if err := os.Rename(d.node.Path("state", "ek-name"), d.path("ek-name")); err != nil {
		return "", err
	}
	mark := d.cloud().Proc.Mark()
	again, err := city.Start("clone", d.path("clone.log"), exec.Command(d.path("bin", "node"), "run", "-config", d.node.Path("node.json")))
	if err != nil {
		return "", err
	}
	defer func() { _ = again.Stop() }()
	enrol, err := d.cloud().Proc.Await(ctx, mark, 20*time.Second, "event", "enroll.refused")
	if err != nil {
		return "", err
	}
	err = os.Rename(d.path("ek-name"), d.node.Path("state", "ek-name"))
	return "node: " + firstReason(pinned.Str("detail")) + "; cloud: " + enrol.Str("reason"), err
}

// revokedNode brings the node back in good order, revokes it, and watches what
// it loses.
func (d *demo) revokedNode(ctx context.Context) (string, error) {
	if err := d.node.Power(ctx, city.UpdatedBoot); err != nil {
		return "", err
	}
	if err := d.node.Start(ctx, "attested", "data volume"); err != nil {
		return "", err
	}
	mark, before := d.node.Proc.Mark(), time.Now()
	if _, err := d.city.Owner.Call(ctx, 0, http.MethodPost, "/v1/admin/nodes/"+d.node.Device+"/revoke", nil); err != nil {
		return "", err
	}
	rec, err := d.node.Proc.Await(ctx, mark, 10*time.Second, "event", "link.lost", "link", "tunnel")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("tunnel gone %d ms after the revocation: %s", time.Since(before).Milliseconds(), rec.Str("detail")), nil
}
