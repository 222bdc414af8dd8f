package tpmtest

import "syscall"

// dieWithParent ends a child when the process that started it dies.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
