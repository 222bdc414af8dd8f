package moduleidtest_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
	"github.com/trusttree/trusttree/moduleid/spdm"
)

// What the own code does when a module misbehaves: here, which faults a
// requester takes for a module that lies, and which for one that is silent or
// unwilling.
func ExampleSPDMPort() {
	ca, _ := moduleidtest.NewCA("Owner's Module CA")
	radio, _, _ := moduleidtest.NewSPDM(ca, "radio 1", []byte("firmware 1.4"))
	port := moduleidtest.NewSPDMPort(radio)

	prove := func() error {
		chip, err := spdm.NewRequester(port.Connect(), spdm.Config{Scheme: spdm.Scheme{Measurements: true}})
		if err != nil {
			return err
		}
		defer chip.Close()
		_, err = chip.Prove(context.Background(), moduleid.NewChallenge("pole-7", "bay1"))
		return err
	}
	fmt.Println("no fault:", prove())

	for _, fault := range []moduleidtest.SPDMFault{
		moduleidtest.SPDMWrongSignature, moduleidtest.SPDMChangedMeasurements, moduleidtest.SPDMUnexpected, moduleidtest.SPDMDisconnect,
	} {
		port.Inject(fault)
		err := prove()
		fmt.Printf("%s: proven %t, refused %t\n", fault, err == nil, errors.Is(err, moduleid.ErrRefused))
	}
	// Output:
	// no fault: <nil>
	// wrong signature: proven false, refused true
	// changed measurements: proven false, refused true
	// unexpected request: proven false, refused false
	// disconnect: proven false, refused false
}

// Faults of one's own: a responder that hides its higher versions.
func ExampleSPDMPort_OnExchange() {
	ca, _ := moduleidtest.NewCA("Owner's Module CA")
	radio, _, _ := moduleidtest.NewSPDM(ca, "radio 1", []byte("firmware 1.4"))
	port := moduleidtest.NewSPDMPort(radio)
	port.OnExchange(func(x *moduleidtest.SPDMExchange) error {
		if x.Of == moduleidtest.SPDMGetVersion {
			x.Answer()
			x.Response = []byte{0x10, 0x04, 0, 0, 0, 1, 0, 0x12}
		}
		return nil
	})
	chip, _ := spdm.NewRequester(port.Connect(), spdm.Config{})
	_, err := chip.Prove(context.Background(), moduleid.NewChallenge("pole-7", "bay1"))
	fmt.Println(err)
	// Output:
	// moduleid: module in connector bay1 of node pole-7 refused: proof (spdm: CHALLENGE_AUTH: the signature does not match the transcript)
}
