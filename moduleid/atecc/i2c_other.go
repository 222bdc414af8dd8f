//go:build !linux

package atecc

import "fmt"

// OpenI2C opens a bus of Linux's i2c-dev driver. Elsewhere there is none.
func OpenI2C(path string) (Bus, error) {
	return nil, fmt.Errorf("%w: %s: only Linux has an i2c-dev driver", ErrBus, path)
}
