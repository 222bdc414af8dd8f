package moduleid_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"log"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/atecc"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
	"github.com/trusttree/trusttree/moduleid/spdm"
)

// A node admits a camera with an ATECC608 and a radio that speaks SPDM, and
// the cloud checks both again. In place of the emulators, a node opens
// /dev/i2c-1 with atecc.OpenI2C and a TPM with its own PCRs.
func Example() {
	ctx := context.Background()
	owner, _ := moduleidtest.NewCA("Owner's Module CA")
	bus := moduleidtest.NewBus(100_000)
	camera, _ := moduleidtest.NewATECC608(moduleidtest.Instant)
	cert, _ := owner.Issue("camera 1", camera.PublicKey(), nil)
	_ = camera.Store(cert)
	bus.Plug(0x60, camera)
	firmware := []byte("radio firmware 1.4")
	radio, radioCert, _ := moduleidtest.NewSPDM(owner, "radio 1", firmware)
	sum := sha256.Sum256(firmware)

	// What the owner decided; node and cloud use the same.
	verifier := &moduleid.Verifier{
		Schemes: []moduleid.Scheme{atecc.Scheme(), spdm.Scheme{Measurements: true}},
		Roots:   owner.Pool(),
		Registry: moduleid.Records{
			moduleid.ID(cert):      {ID: moduleid.ID(cert), Class: "camera"},
			moduleid.ID(radioCert): {ID: moduleid.ID(radioCert), Class: "radio"},
		},
		Classes: map[string]moduleid.Class{
			"camera": {},
			"radio":  {Measurements: map[int][][]byte{1: {sum[:]}}},
		},
		Connectors: map[string]moduleid.Connector{
			"bay1": {Classes: []string{"camera"}, Required: true},
			"bay2": {Classes: []string{"radio"}},
		},
		UnsafeNoRevocations: true, // for the example: see package revocation
	}

	host := atecc.NewHost(bus)
	pcrs := newPCRs()
	inventory, err := moduleid.NewInventory(moduleid.InventoryConfig{
		Node: "pole-7", Verifier: verifier, PCRs: pcrs,
		Bays: []moduleid.BayConfig{
			{Connector: "bay1", Open: func(context.Context) (moduleid.Chip, error) {
				return host.Chip(atecc.Config{Address: 0x60})
			}},
			{Connector: "bay2", Open: func(context.Context) (moduleid.Chip, error) {
				return spdm.NewRequester(spdm.Loopback(radio), spdm.Config{Scheme: spdm.Scheme{Measurements: true}})
			}},
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := inventory.AdmitAll(ctx); err != nil {
		log.Fatal(err)
	}

	// The cloud sends a nonce; the node's quote over PCR 13 follows the report.
	nonce := make([]byte, 32)
	rand.Read(nonce)
	_, body, err := inventory.Collect(ctx, nonce)
	if err != nil {
		log.Fatal(err)
	}
	quoted, _ := pcrs.ReadPCR(ctx, 13, crypto.SHA256)
	verdict, err := verifier.VerifyReport(moduleid.ReportInput{
		Body: body, Node: "pole-7", Nonce: nonce, Bank: crypto.SHA256, PCRs: map[int][]byte{13: quoted},
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, id := range verdict.Admitted() {
		fmt.Println(id.Connector(), id.Class(), id.Scheme(), id.Certificate().Subject.CommonName)
	}
	// Output:
	// bay1 camera atecc.external.v1 camera 1
	// bay2 radio spdm.v1 radio 1
}
