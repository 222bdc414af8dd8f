// Package ear exports Attestation Results for relying parties that were not
// there when they were made: as a claims set in JSON, or in CBOR signed with
// COSE, in the style of EAT Attestation Results (draft-ietf-rats-ear; EAT is
// RFC 9711, COSE_Sign1 RFC 9052).
//
// Start with Sign and Verify. A token says that one node, named by its UEID,
// was affirming for one purpose, and until when. It is bound to the node's TLS
// key: eat_nonce is the SHA-256 of its SubjectPublicKeyInfo, so whoever takes
// a token must compare Claims.LeafSPKI with the session that it came over.
// There are no tokens about refused evidence. A token outlives a revocation by
// at most its validity; who must know at once asks the registry.
//
// The trustworthiness vector has the claims that the appraisers made, in AR4SI's
// tiers. Wrap and Unwrap carry a token as a Conceptual Message (CMW,
// draft-ietf-rats-msg-wrap) beside messages of other kinds. Claims sets carry an eat_profile with a version; Verify reads the
// current one.
package ear
