//go:build linux && (amd64 || arm64 || riscv64)

package fscrypt

import "golang.org/x/sys/unix"

func memfdSecret() (int, error) { return unix.MemfdSecret(unix.FD_CLOEXEC) }
