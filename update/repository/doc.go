// Package repository is the publisher's side of package update: it creates,
// edits and checks TUF repositories (TUF specification 1.0.31) in any object
// store, with keys behind crypto.Signer: files, a TPM, a KMS, PKCS#11.
//
// Start with Create and (*Repository).Edit. An edit is all or nothing: content
// is written first, then targets, snapshot and root, and the timestamp, which
// makes it visible, last. Versioned names are never replaced. Before a byte of
// metadata is written, every changed role has reached its threshold.
//
// What it writes is plain TUF with consistent snapshots, which any TUF client
// reads; releases and rollouts are targets with the formats of package update.
//
// It defends against its own store: Open verifies the whole chain from the
// first root on, so that an edit never signs what somebody else put there
// under a role that its keys did not sign. It does not keep keys.
package repository
