package devid_test

import (
	"testing"

	"github.com/trusttree/trusttree/internal/testenv"
)

func TestFIPSProfile(t *testing.T) {
	testenv.FIPSOnly(t, "TestRequestFromTPM", "TestIAK", "TestIDevIDServesTLS", "TestStoreInNV")
}
