package attesttest_test

import (
	"crypto"
	"crypto/sha256"
	"fmt"
	"log"
	"os"

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

func ExampleTPM_BootLog() {
	maker, err := attesttest.NewMaker()
	if err != nil {
		log.Fatal(err)
	}
	device, err := maker.NewTPM()
	if err != nil {
		log.Fatal(err)
	}
	eventLog, err := os.ReadFile("testdata/uboot.log") // a boot of U-Boot
	if err != nil {
		log.Fatal(err)
	}
	if err := device.BootLog(eventLog); err != nil {
		log.Fatal(err)
	}
	pcr0, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(0),
	}}}}.Execute(device)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%x\n", pcr0.PCRValues.Digests[0].Buffer)
	// Output:
	// dbcf4296593bcc32f42bd58dccff066c678579e17d425398d86af9ffb7fcdb53
}
