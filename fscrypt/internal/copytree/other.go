//go:build !linux

package copytree

import (
	"os"
	"time"
)

// Tree is a scanned directory tree.
type Tree struct{ Totals }

// Scan returns ErrUnsupported.
func Scan(*os.Root, string, func() error) (*Tree, error) { return nil, ErrUnsupported }

// Room returns ErrUnsupported.
func (t *Tree) Room(*os.File) error { return ErrUnsupported }

// Copy returns ErrUnsupported.
func (t *Tree) Copy(_, _ *os.Root, _ func() error, _ func(done, total int)) error {
	return ErrUnsupported
}

// Quiet returns ErrUnsupported.
func (t *Tree) Quiet(_, _ time.Time) error { return ErrUnsupported }

// Unchanged returns ErrUnsupported.
func (t *Tree) Unchanged(*os.Root, func() error) error { return ErrUnsupported }

// Verify returns ErrUnsupported.
func (t *Tree) Verify(*os.Root, func() error) error { return ErrUnsupported }

// Each does nothing.
func (t *Tree) Each(func(path string, sum []byte, size int64)) {}
