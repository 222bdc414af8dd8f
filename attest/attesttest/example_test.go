package attesttest_test

import (
	"crypto"
	"crypto/sha256"
	"fmt"
	"log"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/attest/attesttest"
)

func Example() {
	maker, err := attesttest.NewMaker() // maker.Root is what a verifier pins
	if err != nil {
		log.Fatal(err)
	}
	device, err := maker.NewTPM()
	if err != nil {
		log.Fatal(err)
	}
	kernel := sha256.Sum256([]byte("kernel"))
	if err := device.Boot(attesttest.Measurement{PCR: 4, Digests: map[crypto.Hash][]byte{crypto.SHA256: kernel[:]}}); err != nil {
		log.Fatal(err)
	}
	pcr4, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(4),
	}}}}.Execute(device)
	if err != nil {
		log.Fatal(err)
	}
	want := sha256.Sum256(append(make([]byte, 32), kernel[:]...))
	fmt.Println(maker.Root.Subject.CommonName)
	fmt.Println(string(pcr4.PCRValues.Digests[0].Buffer) == string(want[:]))
	// Output:
	// Test TPM maker root (protects nothing)
	// true
}
