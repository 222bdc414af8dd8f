// Package copytree copies a directory tree as faithfully as a file system lets
// root do it, and shows that the copy is one: contents, holes, names, modes,
// owners, times, extended attributes, symbolic and hard links. Needs Linux.
//
// The owner of the tree calls Scan, Tree.Copy, Tree.Unchanged and Tree.Verify in
// this order. A Tree is not safe for concurrent use and takes some 300 bytes of
// memory for each name.
package copytree

import (
	"errors"
	"io/fs"
	"os"
	"path"
)

var (
	// ErrUnsupported: the tree holds what can't be copied, by its name.
	ErrUnsupported = errors.New("can't be copied")
	// ErrChanged: the tree is not as it was scanned, or the copy not as the
	// tree.
	ErrChanged = errors.New("changed meanwhile")
)

// Totals says how much a Tree holds.
type Totals struct {
	Files  int    // regular files, each once however many names it has
	Inodes uint64 // files, directories and links
	Bytes  int64  // space taken on the disk
}

// Remove removes what name is below root: a file, or a directory with all that
// it holds, which need not be readable. It calls step before each name and ends
// with its error. A name that is not there is no error.
func Remove(root *os.Root, name string, step func() error) error {
	if err := step(); err != nil {
		return err
	}
	err := root.Remove(name)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	fi, serr := root.Lstat(name)
	if serr != nil || !fi.IsDir() {
		return err
	}
	names, err := readNames(root, name)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := Remove(root, path.Join(name, n), step); err != nil {
			return err
		}
	}
	if err := step(); err != nil {
		return err
	}
	return root.Remove(name)
}

func readNames(root *os.Root, dir string) ([]string, error) {
	f, err := root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}
