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

// TestRefusedImageFails: a boot that brings no result is an error, with the
// console to see why. The firmware's fallback never ends, so time ends it.
func TestRefusedImageFails(t *testing.T) {
	if !testenv.Long() {
		t.Skip("full figures only (TRUSTTREE_LONG=1)")
	}
	vm := testvm.New(t, "on")
	for name, im := range map[string]testvm.Image{"tampered": {Tamper: true}, "wrong key": {Sign: "attacker"}, "unsigned": {Sign: "none"}} {
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		r, err := vm.Boot(ctx, im, nil)
		cancel()
		require.ErrorIs(t, err, testvm.ErrNoResult, name)
		assert.Contains(t, string(r.Console), "Access Denied", name)
	}
}
