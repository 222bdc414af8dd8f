//go:build !goexperiment.runtimesecret

package fscrypt

// erasing runs f. Without GOEXPERIMENT=runtimesecret, Go leaves copies of what
// f had in memory until something overwrites them.
func erasing(f func()) { f() }
