// Package secureboot says what a machine booted, and whether that is what its
// owner published. It is the Verifier's side (RFC 9334) of measured boot: the
// TCG PC Client Platform Firmware Profile's event log, UEFI Secure Boot (UEFI
// 2.10 section 32), Linux IMA, and reference values in systemd-pcrlock's JSON.
//
// Start with Learn, which makes a Policy of a boot that is known to be good,
// and Policy.Appraise, which judges another boot by it. Inspect tells what can
// be told without a policy.
//
//	eventlog    the measurement log, verified against a quote's PCR values
//	ima         the IMA log, verified against PCR 10
//	predict     PCR values of an image that has not been booted yet
//	bootpolicy  TPM policies that bind a secret to boot states
//	dice        layered boots of boards without UEFI and TPM
//
// # What it defends against
//
// The attester writes the logs, so a log is believed only as far as the quoted
// PCRs bind it. Every quoted PCR must be explained byte for byte by events, and
// every event of a required PCR by a reference value, in order: an event left
// out, retyped, added or moved is a reason, and so is a PCR without events.
// What a log says is claimed only as far as a digest vouches for it: no single
// changed byte of a recorded boot makes a result claim more.
//
// Unknown is never taken for good: the zero Policy denies, a policy's unknown
// field is refused, and a fact that can't be read is Unknown. Secure Boot
// "enabled" is one fact; Enforcing asks whether it decided what ran.
//
// # What it does not defend against
//
// Firmware that lies, and firmware that runs code it does not measure
// (CVE-2025-2296): what was not measured can measure in the good one's name
// afterwards. Reference values for PCR 0 are the defence. Code that an allowed
// image runs after boot, unless IMA measures it. Freshness and the identity of
// the TPM: Evidence takes the PCR values of a quote that the caller verified.
//
// # Boots met in reality
//
// UEFI with OVMF and TPM 2.0 (systemd-stub 252, shim with GRUB, direct kernel
// boot, Linux 6.1) is tested from firmware to verdict, on recordings and on
// machines that the tests boot. U-Boot 2023.01 on an emulated ARM board with a
// TPM is tested on a recording of ours (testdata/uboot): its log comes through
// the TCG2 protocol and a quote confirms it. Logs of firmware by Google, Lenovo,
// Red Hat's and Ubuntu's loaders, and Windows are tested as far as their PCR
// values are known.
//
// Events that TF-A hands over to U-Boot, CCEL areas, DICE chains and
// multi-profile images are tested with data made after their specifications and
// sources: no board or machine with them was met yet. Boards without UEFI Secure
// Boot need LearnOptions.InsecureNoSB. U-Boot measures its image before PCR 4's
// separator, so Enforcing never holds for it; and an initrd that Linux loads by
// its initrd= option is in no PCR.
//
// # Compatibility
//
// A policy in JSON has a version; readers accept the current version and the one
// before. Finding codes are stable. Until v1.0.0 names may change with a minor
// version.
//
// Everything here is pure: no I/O, no state, safe for concurrent use.
package secureboot
