//go:build !linux

package spdm

import "errors"

// DialMCTP needs Linux.
func DialMCTP(network uint32, eid uint8) (Transport, error) {
	return nil, errors.New("spdm: MCTP sockets need Linux")
}
