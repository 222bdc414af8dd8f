//go:build !linux

package fscrypt_test

func otherProcess() {}
