package moduleid_test

import (
	"testing"

	"github.com/trusttree/trusttree/internal/testenv"
)

// TestFIPSProfile proves modules from the chip to the cloud where only what is
// in Go's FIPS 140-3 module is allowed.
func TestFIPSProfile(t *testing.T) {
	testenv.FIPSOnly(t, "TestInventoryFromChipToCloud", "TestForeignModuleIsRefusedAtNodeAndCloud", "TestSignersOfEveryKind",
		"TestSignerInATPM", "TestThreat10RevokedModule")
}
