package engine_test

import (
	"testing"

	"github.com/trusttree/trusttree/tenantstore/engine"
)

func FuzzParseRef(f *testing.F) {
	f.Add(engine.Ref{UID: [16]byte{1}, Generation: 2}.String())
	f.Add("../x")
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := engine.ParseRef(s); err == nil && r.String() != s {
			t.Fatalf("%q is not %q", s, r)
		}
	})
}
