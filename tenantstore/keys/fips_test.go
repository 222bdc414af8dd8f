package keys_test

import (
	"testing"

	"github.com/trusttree/trusttree/internal/testenv"
)

func TestFIPSProfile(t *testing.T) {
	testenv.FIPSOnly(t, "TestDirWithFile", "TestDirSealedToTPM", "TestTransit")
}
