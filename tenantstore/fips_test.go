package tenantstore_test

import (
	"testing"

	"github.com/trusttree/trusttree/internal/testenv"
)

// TestFIPSProfile stores, reads and refuses where only what is in Go's FIPS
// 140-3 module is allowed: it draws the nonces of records itself.
func TestFIPSProfile(t *testing.T) {
	testenv.FIPSOnly(t, "TestNoncesNeverRepeat", "TestCrossTenantAndAbsentAreRefusedIdentically", "TestIngestRoleAddsAndNothingElse",
		"TestAuthenticateRefuses", "TestECDSAOwner")
}
