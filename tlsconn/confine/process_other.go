//go:build !linux

package confine

func process([]uint16) error { return ErrUnsupported }
