package fscrypt_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"filippo.io/age"

	"github.com/trusttree/trusttree/fscrypt"
)

// A volume that the owner's recovery key opens. On a node, a *fscrypt.TPM with
// a boot policy comes first.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "volume")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	owner, err := age.GenerateHybridIdentity() // kept off the node
	if err != nil {
		log.Fatal(err)
	}
	v, err := fscrypt.Create(ctx, dir, fscrypt.Config{Label: "data", UnsafeNoFreshness: true},
		&fscrypt.Recovery{Recipients: []age.Recipient{owner.Recipient()}})
	if err != nil {
		log.Fatal(err)
	}
	if err := v.WriteFile("air/2026-07-01.csv", []byte("pm10,21\n")); err != nil {
		log.Fatal(err)
	}
	if err := v.Lock(ctx); err != nil {
		log.Fatal(err)
	}

	v, err = fscrypt.Open(ctx, dir, fscrypt.Config{Label: "data"}, &fscrypt.Recovery{Identities: []age.Identity{owner}})
	if err != nil {
		log.Fatal(err)
	}
	defer v.Lock(ctx)
	b, err := v.ReadFile("air/2026-07-01.csv")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s", b)
	// Output: pm10,21
}
