// Package trusttree is the map of a library that carries trust from the chip
// in a streetlight to the tenant's database in the cloud. It holds no code:
// take the package for the link that you need, alone or together with others.
//
//	edge          attest       which node is this, and can it prove it from its TPM
//	edge          moduleid     is every module plugged into it genuine and admitted
//	edge          secureboot   did it boot what its owner published, and nothing else
//	edge          fscrypt      storage that opens on this node, in this boot state only
//	edge          update       is the next software signed, newer, complete, meant for it
//	connectivity  tlsconn      inspected, mutually authenticated tunnels and nothing else
//	cloud         tenantstore  one persistence instance and one key for each tenant
//
// # Roles
//
// The words are those of RFC 9334. The node is the Attester. The cloud's
// appraisal is the Verifier. The tunnel gateway and the tenants' services are
// Relying Parties. The TPM's maker and the modules' makers are Endorsers. Who
// signs firmware and software is the Reference Value Provider.
//
// # How the packages meet
//
// The seven packages never import one another. They meet in the application,
// through types of the standard library and of go-tpm: transport.TPM,
// tpm2.PolicyCallback, crypto.Signer, *x509.Certificate, tls.Config, net.Conn,
// io/fs.FS, age.Identity and *slog.Logger. The directory examples holds a node
// and a cloud that wire all seven.
//
// # Threat model
//
// The attacker has a ladder: he can take a node, its disk or one module, probe
// the TPM's bus, cut power at any moment, and sit on the network. He may be a
// tenant, and he may hold one revoked key. Every package says in its own doc
// what it defends against and what it does not. What a verifier has not
// verified is never readable as fact; the zero value of every policy denies.
//
// # Compatibility
//
// Until v1.0.0 an exported name may change with a minor version; the CHANGELOG
// names each change. Wire and stored formats carry a version: readers accept
// the current version and the one before it.
package trusttree
