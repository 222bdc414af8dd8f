//go:build !linux

package boot

import "os"

func dropCache(*os.File) error { return nil }

func openDirect(*os.File) *os.File { return nil }

func fitsDirect([]byte, int64) bool { return false }
