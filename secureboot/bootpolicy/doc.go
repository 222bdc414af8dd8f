// Package bootpolicy makes TPM 2.0 policies that hold only in a boot state (TPM
// 2.0 Library Specification part 1, section 19.7, and part 3, section 23):
//
//   - Literal: PCRs of one bank have given values.
//   - Signed: a key has signed the PCR values, as systemd-measure does; it is made
//     without a TPM and systemd-cryptenroll --tpm2-public-key= accepts it.
//   - AuthorizeNV: an NV index holds the policy, so that it can be replaced, and
//     an older one revoked, without sealing again.
//   - Or: one of several of them; more than eight are nested.
//
// Each is a Policy. Sealing is fscrypt's: it takes a Policy's Digest, runs
// Satisfy in the policy session that unseals, and appends clauses of its own
// (counter, PIN, latch) after it. So a Policy always comes first in a session.
//
// Policies use SHA-256 as policy hash. Cap extends a PCR after a secret was
// used, so that a later stage of the same boot can't unseal it again.
//
// A signed policy stays valid for as long as the key is trusted: an attacker
// may keep an old one together with the old image. Use AuthorizeNV, or a
// counter in the sealer's clauses, where that matters.
package bootpolicy
