//go:build !linux

package hotplug

import (
	"context"
	"errors"
)

var errLinux = errors.New("this source needs Linux")

// Watch implements Source; it needs Linux.
func (Uevents) Watch(context.Context, func(Event)) error { return errLinux }

// Watch implements Source; it needs Linux.
func (GPIO) Watch(context.Context, func(Event)) error { return errLinux }
