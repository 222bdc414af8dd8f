package testvm_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/internal/testvm"
)

// TestRefusedImageFails: an image that was changed after it was signed, that
// another key signed or nobody, brings no result.
func TestRefusedImageFails(t *testing.T) {
	if !testenv.Long() {
		t.Skip("full figures only (TRUSTTREE_LONG=1)")
	}
	vm := testvm.New(t, "on")
	for name, im := range map[string]testvm.Image{"tampered": {Tamper: true}, "wrong key": {Sign: "attacker"}, "unsigned": {Sign: "none"}} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		r, err := vm.Boot(ctx, im, nil)
		cancel()
		require.ErrorIs(t, err, testvm.ErrNoResult, name)
		require.ErrorIs(t, err, testvm.ErrRefused, name)
		assert.Empty(t, r.Files, name)
	}
}
