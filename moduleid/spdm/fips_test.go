package spdm_test

import (
	"testing"

	"github.com/trusttree/trusttree/internal/testenv"
)

func TestFIPSProfile(t *testing.T) {
	testenv.FIPSOnly(t, "TestProofInEveryVersionAndCurve", "TestTransportsCarryAProof", "TestReferenceResponderTracesVerify")
}
