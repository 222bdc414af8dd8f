// Package spdm makes SPDM responders (DMTF DSP0274, versions 1.2 to 1.4; 1.0
// and 1.1 only where asked for) prove themselves as moduleid chips.
//
// Start with [NewRequester], which drives a responder over a [Transport], and
// list a [Scheme] in the verifier. [NewResponder] is the other side, for
// module makers and for tests.
//
// The evidence of a proof is the transcript: every request and response from
// GET_VERSION to CHALLENGE_AUTH and, where asked for, signed MEASUREMENTS. The
// same code checks it at the node and in the cloud, from the bytes alone: the
// certificate chain against the signed chain hash, the signatures over the
// whole transcript, that the highest common version was taken and one offered
// algorithm of each kind selected, and that the nonce of CHALLENGE is the
// digest of the moduleid challenge, so that the proof is bound to a node and a
// connector. Versions from 1.2 on sign a context string of their own, which
// keeps other protocols' signatures out.
//
// What it was tested against: recorded exchanges of DMTF's reference responder in
// versions 1.1 to 1.3, the socket protocol of its emulator (spdm-emu) as DMTF
// describes it, and the responder of this package in all versions. A live
// emulator, a part in silicon and the kernel's MCTP sockets (AF_MCTP, [DialMCTP])
// have not been met yet: those are built to the specifications.
//
// No secure session is opened: what flows after the proof is not protected by
// it. Error messages are retried a bounded number of times and never part of
// the transcript.
package spdm
