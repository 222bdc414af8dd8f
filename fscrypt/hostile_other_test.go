//go:build !unix

package fscrypt_test

import "errors"

func mkfifo(string) error { return errors.ErrUnsupported }
