package fscrypt_test

import (
	"errors"
	"fmt"
	"maps"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt"
)

// TestFullDiskAtEveryWrite fills the disk before every step of every kind of
// change: what fails is not there, or whole; what was acknowledged stays; files
// can be removed, the volume opens, and once there is space it goes on without
// having to be opened again.
func TestFullDiskAtEveryWrite(t *testing.T) {
	for name, maxLogged := range map[string]int{"small files in the log": 1 << 20, "small files packed at once": 300} {
		t.Run(name, func(t *testing.T) {
			faultEverywhere(t, maxLogged, func(d *crashFS, at int, failed *bool) {
				n := 0
				d.fail = func(string) error {
					if n++; n == at {
						d.room, *failed = d.used(), true
					}
					return nil
				}
			})
		})
	}
}

// TestFailedCallAtEveryStep lets one call to the disk fail, each in turn. After
// a flush that failed nobody knows what the disk holds: the volume takes no
// more changes until it is opened again, and loses nothing.
func TestFailedCallAtEveryStep(t *testing.T) {
	for name, maxLogged := range map[string]int{"small files in the log": 1 << 20, "small files packed at once": 300} {
		t.Run(name, func(t *testing.T) {
			faultEverywhere(t, maxLogged, func(d *crashFS, at int, failed *bool) {
				n := 0
				d.fail = func(string) error {
					if n++; n == at {
						*failed = true
						return syscall.EIO
					}
					return nil
				}
			})
		})
	}
}

func faultEverywhere(t *testing.T, maxLogged int, fault func(d *crashFS, at int, failed *bool)) {
	for at := 1; ; at++ {
		d := newCrashFS()
		v, err := fscrypt.CreateOn(t.Context(), d, loose, pass)
		require.NoError(t, err)
		fscrypt.SetMaxLogged(v, maxLogged)
		failed := false
		fault(d, at, &failed)
		files := map[string]string{}
		var maybe map[string]string
		for _, j := range jobs(t) {
			if j.name == "lock" {
				break
			}
			where := fmt.Sprintf("fault %d in %s", at, j.name)
			after := maps.Clone(files)
			j.then(after)
			had := failed
			err := j.do(v)
			switch {
			case err == nil:
				files = after
			case !had && !failed:
				require.NoError(t, err, where)
			default:
				got := contents(t, v)
				if !maps.Equal(got, files) {
					require.Equal(t, after, got, where)
					files = after
				}
			}
			if d.room > 0 { // what frees space goes on, and so does the rest once there is some
				full := contents(t, v)
				require.Equal(t, files, full, where)
				for name := range files {
					require.NoError(t, v.Remove(name), where)
					delete(files, name)
					break
				}
				reopened := d.Reboot(func() bool { return true })
				reopened.room = d.used()
				w, err := fscrypt.OpenOn(t.Context(), reopened, fscrypt.Config{}, pass)
				require.NoError(t, err, where)
				require.Equal(t, files, contents(t, w), where)
				require.NoError(t, w.Lock(t.Context()), where)
				_, err = fscrypt.OpenOn(t.Context(), reopened, fscrypt.Config{}, pass)
				require.NoError(t, err, where)
				d.room, d.fail = 0, nil
				require.NoError(t, v.WriteFile("space again", []byte("x")), where)
				files["space again"] = "x"
			}
			if err != nil && errors.Is(err, syscall.EIO) {
				maybe = after
				break
			}
		}
		d.fail = nil
		where := fmt.Sprintf("fault %d", at)
		require.Equal(t, files, contents(t, v), where)
		for i, fate := range []func() bool{func() bool { return true }, func() bool { return false }} {
			got := reopened(t, d.Reboot(fate), fmt.Sprint(where, ", fate ", i))
			if maybe == nil || !maps.Equal(maybe, got) {
				require.Equal(t, files, got, where)
			}
		}
		if !failed {
			require.Greater(t, at, 60)
			return
		}
	}
}
