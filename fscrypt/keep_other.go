//go:build !linux

package fscrypt

import "os"

func secretFile() (*os.File, error) { return nil, ErrUnsupported }

func mapFile(*os.File) (mem []byte, free func(), err error) { return nil, nil, ErrUnsupported }
