package bootpolicy_test

import (
	"testing"

	"github.com/trusttree/trusttree/internal/testenv"
)

func TestFIPSProfile(t *testing.T) {
	testenv.FIPSOnly(t, "TestLiteralHoldsInItsBootStateOnly", "TestSignedPolicyFollowsTheImageWithoutSealingAgain",
		"TestFloorRevokesOlderPolicies", "TestFloorIsWrittenByItsAuthorityOnly")
}
