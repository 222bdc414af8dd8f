//go:build unix

package sqlite

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

func ownFile(fi fs.FileInfo) error {
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
		return errors.New("has no owner that can be read")
	case st.Nlink != 1:
		return errors.New("has more than one name (hard link)")
	case int(st.Uid) != os.Geteuid():
		return errors.New("belongs to another user")
	}
	return nil
}
