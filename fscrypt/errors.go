package fscrypt

import (
	"crypto"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Classes of failure. Errors that Create, Open and a Volume's methods return
// wrap one of them where the cause is known; test with errors.Is.
var (
	// ErrPolicy: the TPM refused to unseal because the boot state is not one
	// that the owner approved. errors.As finds a *PolicyError with the PCRs.
	ErrPolicy = errors.New("boot state not approved")
	// ErrLatched: the volume was already opened, or refused, in this boot. It
	// opens again after a reboot.
	ErrLatched = errors.New("already opened or refused in this boot: reboot to open again")
	// ErrRevoked: the approval, the slot or the share was withdrawn for good.
	ErrRevoked = errors.New("revoked")
	// ErrRefused: the releasing service answered no for now, for example
	// because the node's attestation is not affirming.
	ErrRefused = errors.New("share refused")
	// ErrUnavailable: the TPM or the releasing service can't be reached, or
	// another process has the volume open.
	ErrUnavailable = errors.New("unavailable, try later")
	// ErrRollback: the volume's content is older than what the TPM's counter
	// witnessed, or that counter is gone or was replaced.
	ErrRollback = errors.New("content is not the newest")
	// ErrTampered: stored bytes were changed, swapped, truncated or extended.
	ErrTampered = errors.New("stored data was tampered with or damaged")
	// ErrWrongVolume: a key was released, but it is not this volume's key, or
	// what is at this path is not the volume that was created.
	ErrWrongVolume = errors.New("not the volume that was created")
	// ErrTPMChanged: another TPM, or something that poses as the TPM.
	ErrTPMChanged = errors.New("not the TPM that the volume was sealed to")
	// ErrLockout: the TPM's dictionary attack protection refuses any PIN for
	// now. errors.As finds a *LockoutError with the time left.
	ErrLockout = errors.New("TPM in lockout")
	// ErrAuth: wrong PIN, passphrase or recovery identity.
	ErrAuth = errors.New("wrong PIN, passphrase or identity")
	// ErrNoSessionEncryption: the TPM can't encrypt what it releases. There is
	// no fallback to clear text.
	ErrNoSessionEncryption = errors.New("TPM offers no session encryption")
	// ErrNoSlot: none of the protectors given fits a slot of the volume.
	ErrNoSlot = errors.New("no slot for these protectors")
	// ErrLocked: the volume was locked, or its lease ended.
	ErrLocked = errors.New("volume is locked")
	// ErrUnsupported: the kernel, file system or TPM lacks what is needed.
	ErrUnsupported = errors.New("not supported here")
)

// PCRDiff is one PCR whose value is not the approved one. Want is nil where the
// approval holds only a hash over all PCRs: any of them may be the one.
type PCRDiff struct {
	PCR       int
	Want, Got []byte
}

// PolicyError says which PCRs keep the TPM from unsealing. It is ErrPolicy to
// errors.Is. When no PCR differs, the approval itself did not satisfy the TPM.
type PolicyError struct {
	Bank  crypto.Hash
	Diffs []PCRDiff // ascending by PCR
	Err   error     // the TPM's answer
}

// Error names the PCRs and the first bytes of their values.
func (e *PolicyError) Error() string {
	if len(e.Diffs) == 0 {
		return fmt.Sprintf("%v: every PCR has its approved value, but the TPM does not accept the approval: %v", ErrPolicy, e.Err)
	}
	var parts []string
	for _, d := range e.Diffs {
		approved := fmt.Sprintf("approved is %.8x…", d.Want)
		if d.Want == nil {
			approved = "not as signed, or another one is not"
		}
		parts = append(parts, fmt.Sprintf("PCR %d is %.8x…, %s", d.PCR, d.Got, approved))
	}
	return fmt.Sprintf("%v: %s (bank %v): boot an approved image, or open with the recovery key and Reseal", ErrPolicy, strings.Join(parts, "; "), e.Bank)
}

// Unwrap returns ErrPolicy and the TPM's answer.
func (e *PolicyError) Unwrap() []error { return []error{ErrPolicy, e.Err} }

// known reports whether some PCR is known to have another value than approved.
func (e *PolicyError) known() bool {
	return slices.ContainsFunc(e.Diffs, func(d PCRDiff) bool { return d.Want != nil })
}

// PCRs returns the numbers of the PCRs that differ.
func (e *PolicyError) PCRs() []int {
	var n []int
	for _, d := range e.Diffs {
		n = append(n, d.PCR)
	}
	slices.Sort(n)
	return n
}

// LockoutError says how long the TPM will refuse PINs. It is ErrLockout to
// errors.Is.
type LockoutError struct {
	// Wait is how long until the TPM forgets one failure and takes one more
	// try; 0 if the TPM does not say.
	Wait time.Duration
}

// Error names the time left.
func (e *LockoutError) Error() string {
	return fmt.Sprintf("%v: no PIN is accepted for up to %v; the recovery key still opens", ErrLockout, e.Wait)
}

// Unwrap returns ErrLockout.
func (e *LockoutError) Unwrap() error { return ErrLockout }

// BusyError says that the volume can't be locked, or in kernel mode rotated,
// because files are open.
type BusyError struct {
	// Open is how many files, writers or kernel inodes are in use; 0 if the
	// kernel does not say.
	Open int
	// Paths are some of them, where known.
	Paths []string
}

// Error says what holds the volume.
func (e *BusyError) Error() string {
	return fmt.Sprintf("volume is busy: %d files open %v: the keys are still in memory; close them and try again", e.Open, e.Paths)
}

// boundary puts the package's name before an error that leaves it, once.
func boundary(op string, err *error) {
	if *err != nil {
		*err = fmt.Errorf("fscrypt: %s: %w", op, *err)
	}
}
