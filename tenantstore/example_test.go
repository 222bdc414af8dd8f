package tenantstore_test

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/keys"
)

// A node's stream is stored in its tenant's instance, and opens no other.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "tenantstore")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ca, operator, node := certificates() // the TLS layer's: see attest and tlsconn
	ownerPublic, owner, _ := ed25519.GenerateKey(nil)

	kek, err := keys.OpenDir(ctx, filepath.Join(dir, "keys"), nil) // or with the machine's TPM
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	store, err := tenantstore.Open(ctx, tenantstore.Config{Dir: filepath.Join(dir, "store"), Keys: kek,
		Owners: []crypto.PublicKey{ownerPublic}, Roots: roots})
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close(ctx)

	// The owner says who may do what; the store verifies it.
	signed, err := tenantstore.SignAssignments(tenantstore.Assignments{Store: "trusttree", Serial: 1, Expires: time.Now().AddDate(1, 0, 0),
		Grants: []tenantstore.Grant{
			{Subject: "operator", Roles: []tenantstore.Role{tenantstore.RoleControl}},
			{Subject: "node-7", Stream: "air", Tenant: "environment", Roles: []tenantstore.Role{tenantstore.RoleIngest}},
			{Subject: "node-7", Stream: "camera", Tenant: "traffic", Roles: []tenantstore.Role{tenantstore.RoleIngest}},
		}}, owner)
	if err != nil {
		log.Fatal(err)
	}
	if err := store.Assign(ctx, signed); err != nil {
		log.Fatal(err)
	}
	op, err := store.Authenticate(ctx, []*x509.Certificate{operator}, "")
	if err != nil {
		log.Fatal(err)
	}
	if _, err := store.Create(ctx, op, tenantstore.Spec{ID: "environment"}); err != nil {
		log.Fatal(err)
	}

	// A message comes over a stream: certificate and stream lead to the tenant.
	p, err := store.Authenticate(ctx, []*x509.Certificate{node}, "air")
	if err != nil {
		log.Fatal(err)
	}
	tenant, err := store.Tenant(ctx, p)
	if err != nil {
		log.Fatal(err)
	}
	for range 2 { // the second time it is a retry
		fresh, err := tenant.Ingest(ctx, "node-7/air/1", func(tx *tenantstore.Tx) error {
			return tx.Append("readings", "node-7/no2", time.Now(), []byte(`{"ugm3":31}`))
		})
		fmt.Println("stored:", fresh, err)
	}
	_, err = tenant.Collection("readings").Get(ctx, []byte("somebody's"))
	fmt.Println(err)
	_, err = store.Authenticate(ctx, []*x509.Certificate{node}, "door")
	fmt.Println(err)
	// Output:
	// stored: true <nil>
	// stored: false <nil>
	// tenantstore: get: denied
	// tenantstore: authenticate: denied
}

func certificates() (ca, operator, node *x509.Certificate) {
	var tb testing.T
	ca, key := issue(&tb, nil, nil, "city", "")
	operator, _ = issue(&tb, ca, key, "operator", "")
	node, _ = issue(&tb, ca, key, "node-7", "")
	return ca, operator, node
}
