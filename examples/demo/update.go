package main

import (
	"bytes"
	"context"
	"crypto"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/trusttree/trusttree/internal/city"
	"github.com/trusttree/trusttree/update/repository"
)

// update publishes a release that carries its own reference values and PCR
// policy, lets the node install it, reboots into it, and sees it committed.
func (d *demo) update(ctx context.Context) error {
	if err := os.CopyFS(d.path("tuf-before"), os.DirFS(d.repository())); err != nil {
		return err
	}
	mark := d.node.Proc.Mark()
	if err := d.city.Publish(ctx, "1.1.0", 1, city.UpdatedBoot, city.Everybody()); err != nil {
		return err
	}
	if _, err := d.node.Proc.Await(ctx, mark, 30*time.Second, "event", "update.armed", "version", "1.1.0"); err != nil {
		return err
	}
	slot, err := os.ReadFile(d.node.Path("slot-b"))
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(slot, city.Image("1.1.0")) {
		return fmt.Errorf("slot b does not hold the release")
	}
	ok("release 1.1.0 signed, fetched through the tunnel, written to slot b, read back, armed")

	if err := d.node.Proc.Stop(); err != nil {
		return err
	}
	running, err := d.node.Reboot(ctx, map[string][]byte{"a": city.GoodBoot, "b": city.UpdatedBoot})
	if err != nil {
		return err
	}
	if running != "b" {
		return fmt.Errorf("the boot loader took slot %q", running)
	}
	if err := d.node.Start(ctx, "system volume", "attested", "data volume"); err != nil {
		return err
	}
	ok("rebooted into slot b: other PCRs, and both volumes open by the policy that came with the release")
	rec, err := d.node.Proc.Await(ctx, 0, 30*time.Second, "event", "link.proven", "link", "update")
	if err != nil {
		return err
	}
	ok("%s", rec.Str("detail"))
	ok("peak memory: node %s, cloud %s", d.node.Proc.PeakRSS(), d.cloud().Proc.PeakRSS())
	return nil
}

// repository is the city's TUF repository.
func (d *demo) repository() string { return filepath.Join(d.cloud().State, "tuf") }

// newRepository makes a TUF repository with new keys, which it writes to files.
func newRepository(ctx context.Context, dir, keys string) error {
	var cfg repository.Config
	var signers []crypto.Signer
	for _, r := range []struct {
		name string
		role *repository.Role
	}{{"root", &cfg.Root}, {"targets", &cfg.Targets}, {"snapshot", &cfg.Snapshot}, {"timestamp", &cfg.Timestamp}} {
		key, err := city.NewKey(keys + "/" + r.name + ".key")
		if err != nil {
			return err
		}
		r.role.Keys = []crypto.PublicKey{key.Public()}
		signers = append(signers, key)
	}
	_, err := repository.Create(ctx, repository.DirStore(dir), cfg, signers...)
	return err
}

// bump signs snapshot and timestamp anew, which raises their versions.
func bump(ctx context.Context, dir, keys string) error {
	snapshot, err := city.LoadKey(keys + "/snapshot.key")
	if err != nil {
		return err
	}
	timestamp, err := city.LoadKey(keys + "/timestamp.key")
	if err != nil {
		return err
	}
	repo, err := repository.Open(ctx, repository.DirStore(dir), nil)
	if err != nil {
		return err
	}
	return repo.Refresh(ctx, snapshot, timestamp)
}
