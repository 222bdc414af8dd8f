//go:build goexperiment.runtimesecret

package fscrypt

import "runtime/secret"

// erasing runs f and erases the registers, stack and heap memory that it used.
func erasing(f func()) { secret.Do(f) }
