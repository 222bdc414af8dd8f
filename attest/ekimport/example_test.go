package ekimport_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"log"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/attesttest"
	"github.com/trusttree/trusttree/attest/ca"
	"github.com/trusttree/trusttree/attest/registry"
)

func Example() {
	ctx := context.Background()
	maker, err := attesttest.NewMaker()
	if err != nil {
		log.Fatal(err)
	}
	device, err := maker.NewTPM()
	if err != nil {
		log.Fatal(err)
	}
	makers := attest.Endorsers{Anchors: []*x509.Certificate{maker.Root}, Intermediates: maker.Intermediates}
	owner, err := ca.NewEphemeral("city")
	if err != nil {
		log.Fatal(err)
	}
	registrar, err := attest.NewRegistrar(attest.RegistrarConfig{
		Endorsers: makers, Devices: registry.NewMemoryDevices(), Challenges: registry.NewMemoryChallenges(0, nil),
		Issuer: owner, TrustDomain: "city.example",
		Admit: func(context.Context, attest.Applicant) error { return nil }, // what an inventory says
	})
	if err != nil {
		log.Fatal(err)
	}
	node, err := attest.Open(ctx, device, attest.NodeConfig{Endorsers: makers})
	if err != nil {
		log.Fatal(err)
	}
	key, err := node.DeviceKey(ctx)
	if err != nil {
		log.Fatal(err)
	}

	// The cloud knows the EK certificate, from the delivery note as it were.
	inventory := [][]byte{node.EndorsementKey().Certificate.Raw}
	challenge, err := registrar.BeginImport(ctx, inventory, nil)
	if err != nil {
		log.Fatal(err)
	}
	response, err := node.Import(ctx, challenge, key) // on the node
	if err != nil {
		log.Fatal(err)
	}
	enrollment, err := registrar.CompleteImport(ctx, response) // in the cloud
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(enrollment.Device == node.Device())
	// Output: true
}
