package main

import (
	"bytes"
	"context"
	"crypto"
	"fmt"
	"os"
	"time"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/update/boot"
	"github.com/trusttree/trusttree/update/manifest"
	"github.com/trusttree/trusttree/update/repository"
)

// publish adds a release to a TUF repository and lets every node install it.
func publish(ctx context.Context, dir, keys, version string, security uint64, parts ...repository.Content) error {
	var signers []crypto.Signer
	for _, name := range []string{"targets", "snapshot", "timestamp"} {
		key, err := loadKey(keys + "/" + name + ".key")
		if err != nil {
			return err
		}
		signers = append(signers, key)
	}
	repo, err := repository.Open(ctx, repository.DirStore(dir), nil)
	if err != nil {
		return err
	}
	return repo.Edit(ctx, func(tx *repository.Tx) error {
		rel := manifest.Release{Name: version, Version: version, Security: security, Channel: "stable", Hardware: []string{"streetlight-1"}}
		if err := tx.AddRelease(rel, parts...); err != nil {
			return err
		}
		return tx.SetRollout("stable", version, manifest.Rollout{Waves: []manifest.Wave{{Start: time.Now().Add(-time.Minute).UTC(), Permille: 1000}}})
	}, signers...)
}

// image is the software of a release: in the demo just bytes, which the slot
// must hold exactly.
func image(version string) []byte {
	return bytes.Repeat([]byte("streetlight software "+version+"\n"), 64<<10)
}

// update publishes a release that carries its own reference values and PCR
// policy, lets the node install it, reboots into it, and sees it committed.
func (c *city) update(ctx context.Context) error {
	if err := os.CopyFS(c.path("tuf-before"), os.DirFS(c.path("cloud", "tuf"))); err != nil {
		return err
	}
	reference, policy, err := c.referenceValues(updatedBoot, 2)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.path("cloud", "reference", "1.1.0.json"), reference, 0o600); err != nil {
		return err
	}
	mark := c.node.mark()
	err = publish(ctx, c.path("cloud", "tuf"), c.path("cloud", "keys"), "1.1.0", 1,
		repository.Content{Name: wire.PartImage, Reader: bytes.NewReader(image("1.1.0"))},
		repository.Content{Name: wire.PartReference, Reader: bytes.NewReader(reference), Opaque: true},
		repository.Content{Name: wire.PartPolicy, Reader: bytes.NewReader(policy), Opaque: true})
	if err != nil {
		return err
	}
	if _, err := c.node.await(ctx, mark, 30*time.Second, "event", "update.armed", "version", "1.1.0"); err != nil {
		return err
	}
	slot, err := os.ReadFile(c.path("node", "slot-b"))
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(slot, image("1.1.0")) {
		return fmt.Errorf("slot b does not hold the release")
	}
	ok("release 1.1.0 signed, fetched through the tunnel, written to slot b, read back, armed")

	if err := c.node.stop(); err != nil {
		return err
	}
	loader, err := boot.NewFile(c.path("node", "state", "boot.json"), "a", "b")
	if err != nil {
		return err
	}
	running, err := loader.Boot(ctx)
	if err != nil {
		return err
	}
	if running != "b" {
		return fmt.Errorf("the boot loader took slot %q", running)
	}
	if err := c.power(ctx, c.tpm, updatedBoot); err != nil {
		return err
	}
	if err := c.startNode(ctx, false, "system volume", "attested", "data volume"); err != nil {
		return err
	}
	ok("rebooted into slot b: other PCRs, and both volumes open by the policy that came with the release")
	rec, err := c.node.await(ctx, 0, 30*time.Second, "event", "link.proven", "link", "update")
	if err != nil {
		return err
	}
	ok("%s", rec.str("detail"))
	ok("peak memory: node %s, cloud %s", c.node.peakRSS(), c.cloud.peakRSS())
	return nil
}

// newRepository makes a TUF repository with new keys, which it writes to files.
func newRepository(ctx context.Context, dir, keys string) error {
	var cfg repository.Config
	var signers []crypto.Signer
	for _, r := range []struct {
		name string
		role *repository.Role
	}{{"root", &cfg.Root}, {"targets", &cfg.Targets}, {"snapshot", &cfg.Snapshot}, {"timestamp", &cfg.Timestamp}} {
		key, err := newKey(keys + "/" + r.name + ".key")
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
	snapshot, err := loadKey(keys + "/snapshot.key")
	if err != nil {
		return err
	}
	timestamp, err := loadKey(keys + "/timestamp.key")
	if err != nil {
		return err
	}
	repo, err := repository.Open(ctx, repository.DirStore(dir), nil)
	if err != nil {
		return err
	}
	return repo.Refresh(ctx, snapshot, timestamp)
}
