package fscrypt

import (
	"context"

	"github.com/trusttree/trusttree/fscrypt/internal/disk"
)

// CreateOn and OpenOn are Create and Open on a file system of the test's.
func CreateOn(ctx context.Context, d disk.FS, cfg Config, ps ...Protector) (*Volume, error) {
	return createOn(ctx, "mem", d, cfg, ps)
}

func OpenOn(ctx context.Context, d disk.FS, cfg Config, ps ...Protector) (*Volume, error) {
	return openOn(ctx, "mem", d, cfg, ps)
}

// ParseHeader reads a header that nothing authenticates.
func ParseHeader(b []byte) error {
	_, err := parseHeader(b)
	return err
}
