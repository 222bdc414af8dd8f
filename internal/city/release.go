package city

import (
	"bytes"
	"context"
	"crypto"
	"path/filepath"
	"time"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/update/manifest"
	"github.com/trusttree/trusttree/update/repository"
)

// Image is the software of a release: here just bytes, which the slot must hold
// exactly.
func Image(version string) []byte {
	return bytes.Repeat([]byte("streetlight software "+version+"\n"), 64<<10)
}

// Everybody lets all nodes install a release at once.
func Everybody() manifest.Rollout {
	return manifest.Rollout{Waves: []manifest.Wave{{Start: time.Now().Add(-time.Minute).UTC(), Permille: 1000}}}
}

// Publish adds a release to a TUF repository and says who may install it.
func Publish(ctx context.Context, dir, keys, version string, security uint64, rollout manifest.Rollout, parts ...repository.Content) error {
	return edit(ctx, dir, keys, func(tx *repository.Tx) error {
		rel := manifest.Release{Name: version, Version: version, Security: security, Channel: "stable", Hardware: []string{"streetlight-1"}}
		if err := tx.AddRelease(rel, parts...); err != nil {
			return err
		}
		return tx.SetRollout("stable", version, rollout)
	})
}

// Publish adds a release to the city's repository that boots as log says: its
// reference values and its PCR policy travel with it, and the cloud reads them
// there.
func (c *City) Publish(ctx context.Context, version string, security uint64, log []byte, rollout manifest.Rollout) error {
	reference, policy, err := c.ReferenceValues(log, security+1)
	if err != nil {
		return err
	}
	first := c.Clouds[0].State
	return Publish(ctx, filepath.Join(first, "tuf"), filepath.Join(first, "keys"), version, security, rollout,
		repository.Content{Name: wire.PartImage, Reader: bytes.NewReader(Image(version))},
		repository.Content{Name: wire.PartReference, Reader: bytes.NewReader(reference), Opaque: true},
		repository.Content{Name: wire.PartPolicy, Reader: bytes.NewReader(policy), Opaque: true})
}

// SetRollout says anew who may install a release of the city's repository.
func (c *City) SetRollout(ctx context.Context, version string, rollout manifest.Rollout) error {
	first := c.Clouds[0].State
	return edit(ctx, filepath.Join(first, "tuf"), filepath.Join(first, "keys"), func(tx *repository.Tx) error {
		return tx.SetRollout("stable", version, rollout)
	})
}

func edit(ctx context.Context, dir, keys string, f func(*repository.Tx) error) error {
	var signers []crypto.Signer
	for _, name := range []string{"targets", "snapshot", "timestamp"} {
		key, err := LoadKey(filepath.Join(keys, name+".key"))
		if err != nil {
			return err
		}
		signers = append(signers, key)
	}
	repo, err := repository.Open(ctx, repository.DirStore(dir), nil)
	if err != nil {
		return err
	}
	return repo.Edit(ctx, f, signers...)
}
