package tpmtest

import "syscall"

// DieWithParent ends a child when the process that started it dies.
func DieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
