//go:build !linux

package fscrypt

func lockedMemory(size int) (b []byte, free func()) { return make([]byte, size), func() {} }
