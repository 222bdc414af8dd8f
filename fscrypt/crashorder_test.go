package fscrypt_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/internal/testenv"
)

// TestPowerCutReordersSectors cuts the power while many records of the
// manifest, more than a sector and than a record's limit, wait for one flush:
// any of their sectors may have reached the disk, in any order. That is no
// tampering, and nothing acknowledged is lost.
func TestPowerCutReordersSectors(t *testing.T) {
	for name, files := range map[string]int{"a few": 3, "many": 60, "more than a record holds": 240} {
		t.Run(name, func(t *testing.T) {
			dir := "d/"
			if files > 200 { // names that take 6 KB each in a record
				dir = strings.Repeat("\x01", 1000) + "/"
			}
			d := newCrashFS()
			v, err := fscrypt.CreateOn(t.Context(), d, loose, pass)
			require.NoError(t, err)
			acked := map[string]string{}
			for i := range files {
				n := fmt.Sprint(dir, i)
				acked[n] = fmt.Sprint("content ", i)
				require.NoError(t, v.WriteFile(n, []byte(acked[n])))
			}
			fscrypt.SetMaxLogged(v, 1)
			steps := 0
			d.each = func() {
				most := testenv.N(2, 40)
				if steps++; files > 200 {
					if most = 1; pending(d) < 1000 {
						return // only what is larger than a record
					}
				}
				for i, fate := range subsets(d, most) {
					where := fmt.Sprintf("cut before step %d, fate %d", steps, i)
					got := reopened(t, d.reboot(fate), where)
					last, ok := got["last"]
					require.True(t, !ok || last == "packs all", where)
					delete(got, "last")
					require.True(t, maps.Equal(acked, got), where)
				}
			}
			require.NoError(t, v.WriteFile("last", []byte("packs all")))
			d.each = nil
			require.Greater(t, steps, 6, "nothing was packed")
		})
	}
}

// reopened opens what a cut left, twice, and returns what is in it.
func reopened(t *testing.T, d *crashFS, where string) map[string]string {
	v, err := fscrypt.OpenOn(t.Context(), d, fscrypt.Config{}, pass)
	require.NoError(t, err, where)
	got := contents(t, v)
	require.NoError(t, v.WriteFile("after", []byte("x")), where)
	require.NoError(t, v.Lock(t.Context()), where)
	v, err = fscrypt.OpenOn(t.Context(), d, fscrypt.Config{}, pass)
	require.NoError(t, err, where)
	again := contents(t, v)
	require.Equal(t, "x", again["after"], where)
	delete(again, "after")
	require.True(t, maps.Equal(got, again), where)
	fscrypt.Abandon(v)
	return got
}

// subsets are fates of a disk's unflushed changes: none and all of them are
// there, each one alone is, each one alone is not (of up to n of them), and
// random ones.
func subsets(d *crashFS, n int) (fates []func() bool) {
	pending := pending(d)
	one := func(at int, is bool) func() bool {
		i := -1
		return func() bool { i++; return (i == at) == is }
	}
	fates = append(fates, one(-2, true), one(-2, false))
	step := max(pending/n, 1)
	for at := 0; at < pending; at += step {
		fates = append(fates, one(at, true), one(at, false))
	}
	rnd := rand.New(rand.NewPCG(uint64(pending), 7))
	for _, of := range []int{2, 10} {
		fates = append(fates, func() bool { return rnd.IntN(of) > 0 })
	}
	return fates
}

// pending counts the unflushed changes of a disk.
func pending(d *crashFS) (n int) {
	d.reboot(func() bool { n++; return true })
	return n
}
