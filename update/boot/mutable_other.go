//go:build !linux

package boot

func makeMutable(string) error { return nil }
