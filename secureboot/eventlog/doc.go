// Package eventlog reads and verifies the boot's measurement log as the TCG PC
// Client Platform Firmware Profile Specification 1.06 defines it (sections 9
// and 10): the SHA-1 format, the crypto-agile format in all banks, the CCEL
// table of TDX machines, and the CEL encodings of logs that user space writes
// (Canonical Event Log Format 1.0 in JSON and TLV, systemd's JSON sequence).
//
// Start with Parse and Log.Verify.
//
// # What a log proves
//
// A log is the attester's own words. The only thing that a TPM confirms is, for
// one bank, the ordered list of digests that went into each PCR. So a Log is
// for display; Verify compares it with PCR values from a verified quote and
// returns a Verified, the only type that hands out facts. Even then the event's
// type, its data when the digest is of something else, and the order between
// PCRs are the attacker's to choose: VerifiedEvent.Fact returns data only as far
// as the digest binds it (see Binding), and Hint is for people.
//
// CCEL areas, and events that earlier firmware handed over, were met only as
// data made after their specifications: no machine with them was there to test
// on. All else is tested on logs of real boots.
//
// Parsing copies nothing and allocates once; the log must not be changed while
// a Log made from it is in use. No declared size is believed: every count is
// bounded by the bytes that are there.
package eventlog
