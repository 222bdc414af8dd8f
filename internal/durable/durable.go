// Package durable writes files so that a power cut at any step leaves either
// the old content or the new one: temporary file, write, fsync, rename, fsync
// of the directory.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// tempPattern marks temporary files; Clean removes what a cut left of them.
const tempPattern = ".tmp-*"

// WriteFile replaces name with data, durably and atomically.
func WriteFile(name string, data []byte, perm fs.FileMode) error {
	return WriteFunc(name, perm, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// WriteFunc replaces name with what write writes, durably and atomically. When
// write fails, name is untouched and nothing is left behind.
func WriteFunc(name string, perm fs.FileMode, write func(io.Writer) error) (err error) {
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, filepath.Base(name)+tempPattern)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreNotExist(os.Remove(f.Name())))
		}
	}()
	err = write(f)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return Rename(f.Name(), name)
}

// Rename renames old to new and makes the new name durable. Both must be in
// one directory.
func Rename(oldName, newName string) error {
	if err := os.Rename(oldName, newName); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(newName))
}

// Remove removes a file, if it is there, and makes its absence durable.
func Remove(name string) error {
	if err := ignoreNotExist(os.Remove(name)); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(name))
}

// MkdirAll is os.MkdirAll that also makes each directory it creates durable.
func MkdirAll(dir string, perm fs.FileMode) error {
	if fi, err := os.Stat(dir); err == nil {
		if !fi.IsDir() {
			return fmt.Errorf("%s: not a directory", dir)
		}
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := MkdirAll(parent, perm); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return SyncDir(parent)
}

// SyncDir flushes a directory's entries to the disk.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// Clean removes the temporary files that a cut left in dir.
func Clean(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.Contains(e.Name(), strings.TrimSuffix(tempPattern, "*")) && e.Type().IsRegular() {
			if err := ignoreNotExist(os.Remove(filepath.Join(dir, e.Name()))); err != nil {
				return err
			}
		}
	}
	return nil
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
