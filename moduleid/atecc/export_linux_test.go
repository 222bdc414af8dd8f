package atecc

import (
	"context"
	"os"
)

// Flock is the lock of OpenI2C, for a bus of the tests.
func Flock(f *os.File) func(context.Context) (func() error, error) { return (&fileLock{f: f}).take }
