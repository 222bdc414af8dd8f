package update_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/boot"
	"github.com/trusttree/trusttree/update/manifest"
	"github.com/trusttree/trusttree/update/repository"
)

// A publisher makes a release; a node installs it, tries it, and keeps it.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "update")
	check(err)
	defer os.RemoveAll(dir)

	// The publisher: one key for all roles here; a vendor uses several.
	_, key, err := ed25519.GenerateKey(rand.Reader)
	check(err)
	role := repository.Role{Keys: []crypto.PublicKey{key.Public()}}
	repo, err := repository.Create(ctx, repository.DirStore(filepath.Join(dir, "repo")),
		repository.Config{Root: role, Targets: role, Snapshot: role, Timestamp: role}, key)
	check(err)
	check(repo.Edit(ctx, func(tx *repository.Tx) error {
		rel := manifest.Release{Name: "os-2.0", Version: "2.0", Security: 1, Channel: "stable", Hardware: []string{"lamp-2"}}
		if err := tx.AddRelease(rel,
			repository.Content{Name: "rootfs", Reader: bytes.NewReader([]byte("the new system"))},
			repository.Content{Name: "pcr-policy", Opaque: true, Reader: bytes.NewReader([]byte("its PCR policy"))}); err != nil {
			return err
		}
		return tx.SetRollout("stable", "os-2.0", manifest.Rollout{Waves: []manifest.Wave{{Start: time.Now(), Permille: 1000}}})
	}, key))
	root, err := repo.Root(ctx)
	check(err)

	// The node.
	client, err := update.NewClient(update.ClientConfig{
		Root: root, Dir: filepath.Join(dir, "tuf"),
		Images: update.FSSource(os.DirFS(filepath.Join(dir, "repo"))), // or HTTPSource
		Floors: update.FileFloors(filepath.Join(dir, "floors")),       // or TPMFloors
	})
	check(err)
	loader, err := boot.NewFile(filepath.Join(dir, "boot.json"), "a", "b")
	check(err)
	installer, err := update.NewInstaller(update.InstallerConfig{
		Client: client, Boot: loader, Dir: filepath.Join(dir, "installer"),
		Slots: boot.FileSlots{Dir: filepath.Join(dir, "slots"), Capacity: 1 << 20},
		Preflight: func(_ context.Context, parts map[string][]byte) error {
			fmt.Printf("preflight: %s\n", parts["pcr-policy"])
			return nil
		},
	})
	check(err)
	_, err = client.Refresh(ctx)
	check(err)
	sel, err := client.Select(ctx, update.Node{ID: "node-1", Hardware: "lamp-2", Channel: "stable", Version: "1.0"})
	check(err)
	check(installer.Install(ctx, sel))

	slot, err := loader.Boot(ctx) // the reboot
	check(err)
	st, err := installer.Resume(ctx)
	check(err)
	fmt.Println(slot, st.Phase)
	check(installer.Confirm(ctx))
	st, err = installer.State(ctx)
	check(err)
	fmt.Println(st.Release.Version, st.Phase)
	// Output:
	// preflight: its PCR policy
	// b trial
	// 2.0 committed
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
