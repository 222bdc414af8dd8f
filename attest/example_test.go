package attest_test

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"log"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/ca"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/registry"
)

// A verifier says what it wants of every node; the zero value of each policy
// denies, so an appraiser has to affirm what it understands.
func ExampleNewVerifier() {
	_, err := attest.NewVerifier(attest.VerifierConfig{
		Devices:    registry.NewMemoryDevices(),
		Challenges: registry.NewMemoryChallenges(0, nil),
		PCRs:       []quote.Selection{{Bank: crypto.SHA256, PCRs: []int{0, 2, 4, 7}}},
		Appraisers: []attest.Appraiser{func(_ context.Context, in attest.Input) attest.Opinion {
			if in.PCRs[7][0] != 0x65 {
				return attest.Opinion{Status: attest.StatusContraindicated, Reasons: []attest.Reason{{Code: "secure-boot", Detail: "PCR 7 is not the one published"}}}
			}
			return attest.Opinion{Status: attest.StatusAffirming}
		}},
	})
	fmt.Println(err)
	// Output: <nil>
}

// An owner's registrar: who vouches for TPMs, who decides about admission, and
// who signs.
func ExampleNewRegistrar() {
	maker, err := ca.NewEphemeral("TPM maker") // in real life, the maker's published root
	if err != nil {
		log.Fatal(err)
	}
	owner, err := ca.NewEphemeral("city of example")
	if err != nil {
		log.Fatal(err)
	}
	token := sha256.Sum256([]byte("from bootstrap.json"))
	_, err = attest.NewRegistrar(attest.RegistrarConfig{
		Endorsers:   attest.Endorsers{Anchors: []*x509.Certificate{maker.Certificate()}},
		Devices:     registry.NewMemoryDevices(),
		Challenges:  registry.NewMemoryChallenges(0, nil),
		Issuer:      owner,
		TrustDomain: "city.example",
		Admit: func(_ context.Context, a attest.Applicant) error {
			if sha256.Sum256(a.Token) != token {
				return fmt.Errorf("unknown token")
			}
			return nil
		},
	})
	fmt.Println(err)
	// Output: <nil>
}
