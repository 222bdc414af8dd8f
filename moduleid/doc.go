// Package moduleid makes every removable module prove who it is, where it is
// plugged in, for as long as it is used.
//
// A node's camera, radio or sensor is a module in a connector that anybody
// with a ladder can reach. Each carries a secure element: an ATECC608 on I2C
// (package moduleid/atecc), an SPDM responder (package moduleid/spdm, DMTF
// DSP0274), or anything with a crypto.Signer ([FromSigner]). One small
// interface, [Chip], covers them all, and one digest, [Challenge.Digest],
// binds every proof to a nonce, a node and a connector.
//
// Start with [Verifier.Verify], which turns the evidence of one chip into an
// [Identity] or a [RefusedError], and with [NewInventory], which keeps all the
// connectors of a node: it admits what is plugged in, invalidates it when it
// is pulled out, measures the inventory for an application PCR, and collects
// the modules' evidence for a verifier in the cloud. There,
// [Verifier.VerifyReport] checks the same bytes again, with the cloud's own
// nonce, against the value of that PCR.
//
// # What it defends against
//
// Replayed, relayed-by-recording and cloned answers; genuine chips that are
// not the owner's (a vendor's root is no membership: the owner's registry or
// the owner's CA is); a module of the wrong class in a connector; revoked
// modules, also when an old list is played back; a module swapped between
// check and use; one identity in two places; algorithm and version downgrade;
// a node that lies about its modules.
//
// # What it does not
//
// A live relay to a genuine chip elsewhere that answers within the deadline:
// a proof shows that the chip answers now through this connector, not that it
// sits in it. Only a data plane keyed by the same chip closes that gap; the
// fleet-wide duplicate check (package moduleid/fleet) finds the chip that serves two places.
// A chip opened in a laboratory is a clone with the genuine key: it exposes
// that one identity, which the owner then revokes. What a module does with
// its data after it proved its identity is outside this package.
//
// Until v1.0.0 exported names may change with a minor version. The wire and
// stored formats carry a version; readers accept the current one and the one
// before it.
package moduleid
