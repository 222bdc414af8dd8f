package fscrypt

import (
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// FS returns the volume as an io/fs file system for reading. It implements
// fs.ReadFileFS, fs.StatFS and fs.ReadDirFS.
func (v *Volume) FS() fs.FS {
	if v.kernelMode {
		return v.kernelFS()
	}
	return fsView{v}
}

type fsView struct{ v *Volume }

// pathError gives an error the form that package io/fs asks for.
func pathError(op, name string, err error) error {
	for _, e := range []error{fs.ErrNotExist, fs.ErrInvalid} {
		if errors.Is(err, e) {
			err = e
		}
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// Open implements fs.FS.
func (f fsView) Open(name string) (fs.File, error) {
	info, err := f.Stat(name)
	if err != nil {
		return nil, pathError("open", name, errors.Unwrap(err))
	}
	if info.IsDir() {
		entries, err := f.ReadDir(name)
		return &dirFile{info: info, entries: entries}, err
	}
	file, err := f.v.OpenFile(name)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return file, nil
}

// Stat implements fs.StatFS.
func (f fsView) Stat(name string) (fs.FileInfo, error) {
	if !fs.ValidPath(name) {
		return nil, pathError("stat", name, fs.ErrInvalid)
	}
	f.v.mu.RLock()
	defer f.v.mu.RUnlock()
	if f.v.locked != nil {
		return nil, pathError("stat", name, f.v.locked)
	}
	info, err := f.v.m.stat(name)
	if err != nil {
		return nil, pathError("stat", name, err)
	}
	return info, nil
}

// ReadFile implements fs.ReadFileFS.
func (f fsView) ReadFile(name string) ([]byte, error) {
	if !fs.ValidPath(name) {
		return nil, pathError("read", name, fs.ErrInvalid)
	}
	b, err := f.v.ReadFile(name)
	if err != nil {
		return nil, pathError("read", name, err)
	}
	return b, nil
}

// ReadDir implements fs.ReadDirFS.
func (f fsView) ReadDir(name string) ([]fs.DirEntry, error) {
	if !fs.ValidPath(name) {
		return nil, pathError("readdir", name, fs.ErrInvalid)
	}
	f.v.mu.RLock()
	defer f.v.mu.RUnlock()
	if f.v.locked != nil {
		return nil, pathError("readdir", name, f.v.locked)
	}
	children, ok := f.v.m.dirs[name]
	if !ok {
		return nil, pathError("readdir", name, fs.ErrNotExist)
	}
	entries := make([]fs.DirEntry, 0, len(children))
	for c := range children {
		info, err := f.v.m.stat(path.Join(name, c))
		if err != nil {
			return nil, pathError("readdir", name, err)
		}
		entries = append(entries, info)
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, nil
}

// dirFile is an open directory.
type dirFile struct {
	info    fs.FileInfo
	entries []fs.DirEntry
}

func (d *dirFile) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *dirFile) Close() error               { return nil }

func (d *dirFile) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.info.Name(), Err: errors.New("is a directory")}
}

func (d *dirFile) ReadDir(n int) ([]fs.DirEntry, error) {
	if n <= 0 || n > len(d.entries) {
		if n > 0 && len(d.entries) == 0 {
			return nil, io.EOF
		}
		n = len(d.entries)
	}
	out := d.entries[:n:n]
	d.entries = d.entries[n:]
	return out, nil
}
