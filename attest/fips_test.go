package attest_test

import (
	"testing"

	"github.com/trusttree/trusttree/internal/testenv"
)

// TestFIPSProfile enrols and attests, with keys of the kinds that Go's FIPS
// 140-3 module has, where nothing else is allowed.
func TestFIPSProfile(t *testing.T) {
	testenv.FIPSOnly(t, "TestNodeEnrolsAndAttests", "TestIdentitySurvivesReboot", "TestDeviceKeyServesTLS13",
		"TestEnrolmentInOneRoundTrip", "TestT1ReplayedAndRelayedEvidence", "TestEveryEKTemplateEnrols", "TestKeyAttestations")
}
