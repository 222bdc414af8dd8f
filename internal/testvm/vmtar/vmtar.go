// Package vmtar reads the archives by which a test's virtual machine and the
// test exchange files; both ends use it.
package vmtar

import (
	"archive/tar"
	"errors"
	"io"
	"os"
)

// maxFile bounds one file, in bytes.
const maxFile = 16 << 20

// Read returns the files of an archive, which may be a file or a block device.
func Read(name string) (map[string][]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	files := make(map[string][]byte)
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		if files[h.Name], err = io.ReadAll(io.LimitReader(r, maxFile)); err != nil {
			return nil, err
		}
	}
}
