package testvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
)

// kernel is an unpacked Debian kernel package.
type kernel struct {
	image string // vmlinuz
	root  string // where the package is unpacked
}

const metaPackage = "linux-image-cloud-amd64"

var versioned = regexp.MustCompile(`linux-image-[0-9][^ \n]*-cloud-amd64`)

// findKernel unpacks Debian's cloud kernel into the cache, unless it is there.
func findKernel(ctx context.Context, cache string) (*kernel, error) {
	if k, err := unpacked(cache); err == nil {
		return k, nil
	}
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", metaPackage).Output()
	name := versioned.FindString(string(out))
	if err != nil || name == "" {
		return nil, fmt.Errorf("testvm: no package for %s: run apt-get update (%v)", metaPackage, err)
	}
	tmp, err := os.MkdirTemp(cache, "kernel-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o777); err != nil { // apt downloads as a user of its own
		return nil, err
	}
	if err := run(ctx, tmp, "apt-get", "-q", "download", name); err != nil {
		return nil, err
	}
	debs, _ := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if len(debs) != 1 {
		return nil, fmt.Errorf("testvm: apt-get download %s brought %d files", name, len(debs))
	}
	if err := run(ctx, tmp, "dpkg-deb", "-x", debs[0], filepath.Join(tmp, "root")); err != nil {
		return nil, err
	}
	if err := os.Rename(filepath.Join(tmp, "root"), filepath.Join(cache, "kernel")); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	return unpacked(cache)
}

func unpacked(cache string) (*kernel, error) {
	images, _ := filepath.Glob(filepath.Join(cache, "kernel", "boot", "vmlinuz-*"))
	if len(images) == 0 {
		return nil, errors.New("testvm: kernel is not unpacked")
	}
	return &kernel{images[len(images)-1], filepath.Join(cache, "kernel")}, nil
}

// run runs a tool and puts its output into the error.
func run(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1", "E2FSPROGS_FAKE_TIME=1700000000", "SOURCE_DATE_EPOCH=1700000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("testvm: %s %v: %w\n%s", name, args, err, out)
	}
	return nil
}
