// Package predict computes the PCR values of boots that have not happened yet,
// from files alone: PCR 4, 9 and 11 from a unified kernel image, PCR 7 from the
// Secure Boot keys. So an update can carry its own reference values, and its
// own signed PCR policy (package bootpolicy), before any node has booted it.
//
// It follows the Windows Authenticode PE format (image hashes), TCG PFP 1.06
// sections 3.3.4 and 10, systemd-stub as of versions 252 to 257 (UAPI.5 Unified
// Kernel Image), and Linux' EFI stub. Predictions are compared bit for bit with
// the PCRs of real boots and with systemd-measure.
//
// Start with MeasureUKI; UKI.Variant and Keys.Variant are reference values for
// a secureboot.Component, Values turns components into PCR values.
//
// What firmware adds of its own to these PCRs (an application of the board's
// maker in PCR 4, a driver's authority in PCR 7) can't be known from files:
// learn it from a boot.
package predict
