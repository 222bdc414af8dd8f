//go:build !linux

package kernel

import "os"

// AddKey returns ErrUnsupported.
func AddKey(*os.File, []byte) (Identifier, error) { return Identifier{}, ErrUnsupported }

// RemoveKey returns ErrUnsupported.
func RemoveKey(*os.File, Identifier) (Removal, error) { return Removal{}, ErrUnsupported }

// Status returns ErrUnsupported.
func Status(*os.File, Identifier) (KeyState, error) { return 0, ErrUnsupported }

// SetPolicy returns ErrUnsupported.
func SetPolicy(*os.File, Policy) error { return ErrUnsupported }

// GetPolicy returns ErrUnsupported.
func GetPolicy(*os.File) (Policy, error) { return Policy{}, ErrUnsupported }

// Probe returns ErrUnsupported.
func Probe(*os.File, Identifier) (Policy, error) { return Policy{}, ErrUnsupported }

// Generic reports false.
func Generic(string) bool { return false }

// Exchange returns ErrUnsupported.
func Exchange(*os.File, string, string) error { return ErrUnsupported }

// Users returns nothing.
func Users(string, int) []string { return nil }

// SameDir reports false.
func SameDir(string, *os.File) bool { return false }

// Sync returns ErrUnsupported.
func Sync(*os.File) error { return ErrUnsupported }
