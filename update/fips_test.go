package update_test

import (
	"testing"

	"github.com/trusttree/trusttree/internal/testenv"
)

// TestFIPSProfile verifies, installs and counts floors in a TPM where only what
// is in Go's FIPS 140-3 module is allowed: TUF keys of every kind are in it.
func TestFIPSProfile(t *testing.T) {
	testenv.FIPSOnly(t, "TestD17KeysOfEveryKindSignAndVerify", "TestRollbackOfEachRole", "TestUnderThreshold", "TestDeltaUpdates",
		"TestUSBStick", "TestTPMFloorsUnderAttack")
}
