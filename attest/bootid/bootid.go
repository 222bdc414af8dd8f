// Package bootid carries the kernel's boot ID as a body of evidence. A TPM that
// was reset while its machine ran on, by a device between the two or on its
// pins, forgets its PCRs and can be told the measurements of another boot. The
// reset count in each quote shows the reset, and the boot ID that the machine
// did not start over: attest.Verifier refuses the one without the other with
// attest.ErrReset.
//
// Put Collect into NodeConfig.Collectors. A device that has shown a boot ID
// must go on showing one until the owner revokes and releases it. A kernel that
// is started by another one (kexec) has a new boot ID beside an old reset
// count: machines that do so can't use this.
//
// The boot ID is the node's own word, signed by the quote as such. It defends
// an honest node against what sits on its bus, and not against the node.
package bootid

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
)

// MediaType is the media type of the body: 36 characters as in the kernel's
// file, with or without a newline behind.
const MediaType = "text/vnd.trusttree.boot-id"

// ErrMalformed says that a body is no boot ID.
var ErrMalformed = errors.New("bootid: malformed boot ID")

const file = "/proc/sys/kernel/random/boot_id" // proc_sys_kernel(5), Linux

// Collect is an attest.Collector of the running kernel's boot ID. The nonce
// plays no part.
func Collect(context.Context, []byte) (mediaType string, body []byte, err error) {
	if body, err = os.ReadFile(file); err == nil {
		_, err = Parse(body)
	}
	if err != nil {
		return "", nil, fmt.Errorf("bootid: %w", err)
	}
	return MediaType, body, nil
}

// Parse returns the boot ID in a body: a UUID in lower case. Errors are
// ErrMalformed.
func Parse(body []byte) (string, error) {
	if n := len(body); n == 37 && body[36] == '\n' {
		body = body[:36]
	}
	if len(body) != 36 || !regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`).Match(body) {
		return "", fmt.Errorf("%w: %d bytes", ErrMalformed, len(body))
	}
	return string(body), nil
}
