//go:build !linux

package tpmtest

import "syscall"

func DieWithParent() *syscall.SysProcAttr { return nil }
