package fscrypt_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/trusttree/trusttree/fscrypt"
)

// TestModel compares a volume with a map, under changes, locks, rotations and
// power cuts in any order.
func TestModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		d := newCrashFS()
		v, err := fscrypt.CreateOn(t.Context(), d, loose, pass)
		require.NoError(r, err)
		model := map[string]string{}
		name := rapid.SampledFrom([]string{"a", "b", "dir/a", "dir/b", "dir/sub/c", "dir"})
		has := func(n string) bool { _, ok := model[n]; return ok }
		open := func() {
			v, err = fscrypt.OpenOn(t.Context(), d, fscrypt.Config{}, pass)
			require.NoError(r, err)
			fscrypt.SetMaxLogged(v, 9000)
		}
		r.Repeat(map[string]func(*rapid.T){
			"write": func(r *rapid.T) {
				n, size := name.Draw(r, "name"), rapid.OneOf(rapid.IntRange(0, 70_000), rapid.IntRange(0, 5000)).Draw(r, "size")
				content := fmt.Sprintf("%0*d", size, len(model))
				if err := v.WriteFile(n, []byte(content)); err == nil {
					model[n] = content
				} else {
					require.False(r, has(n), "a file that is there can be written: %v", err)
				}
			},
			"remove": func(r *rapid.T) {
				n := name.Draw(r, "name")
				require.Equal(r, has(n), v.Remove(n) == nil)
				delete(model, n)
			},
			"rename": func(r *rapid.T) {
				a, b := name.Draw(r, "from"), name.Draw(r, "to")
				err := v.Rename(a, b)
				if !has(a) {
					require.Error(r, err)
				}
				if err == nil && a != b {
					model[b] = model[a]
					delete(model, a)
				}
			},
			"reopen": func(*rapid.T) {
				require.NoError(r, v.Lock(t.Context()))
				open()
			},
			"power cut": func(r *rapid.T) {
				keep := rapid.Bool().Draw(r, "keep")
				d = d.Reboot(func() bool { return keep })
				open()
			},
			"rotate": func(*rapid.T) { require.NoError(r, v.Rotate(t.Context(), pass)) },
			"": func(r *rapid.T) {
				require.Equal(r, slices.Sorted(maps.Keys(model)), slices.Sorted(maps.Keys(contents(t, v))))
				for n, want := range model {
					got, err := v.ReadFile(n)
					require.NoError(r, err)
					require.True(r, string(got) == want, n)
				}
			},
		})
	})
}
