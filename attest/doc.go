// Package attest answers which node this is, and lets it prove so remotely from
// keys and certificates inside its TPM, from enrolment to revocation.
//
// On the node start with Open, then Node.EnrollmentRequest, Node.Activate and
// Node.Evidence. In the cloud start with NewRegistrar for enrolment and
// NewVerifier for appraisal. The messages between them are plain structs with
// Parse and Marshal; who carries them is the application's choice.
//
// Registrar.BeginImport and Node.Import enrol in one round trip (package
// ekimport).
//
// Package quote is the verifier's core alone, registry the stores, ca an issuer
// over any crypto.Signer, ear the export of results as signed tokens, devid the
// TCG's initial keys and their certificate request.
//
// # What it implements
//
// TPM 2.0 Library Specification: credential activation (part 1, section 24),
// attestation (part 1, section 31). TCG EK Credential Profile 2.5: templates L-1, L-2,
// H-1 to H-3, H-6 and H-7. TCG TPM 2.0 Keys for Device Identity and Attestation
// 1.0 and IEEE 802.1AR: the attestation key is a primary of the endorsement
// hierarchy, the TLS key is an LDevID whose certificate carries a
// HardwareModuleName and a SPIFFE ID. Roles and words are those of RFC 9334,
// tiers those of AR4SI.
//
// # What it defends against
//
// A node's name is the hash of its endorsement key (registry.DeviceID), bound
// once and with compare-and-swap; whoever wants another binding must revoke
// first. Challenges are minted by the verifier, expire, count once, and name
// device, purpose and TLS key. What the TPM signs covers the verifier's nonce,
// the node, the purpose, the TLS session (exporter and key) and every body of
// the evidence, by one formula:
//
//	qualifying data = SHA-256(F("trusttree attest v1") F(purpose) F(device)
//	                          F(nonce) F(binding) F(leaf SPKI hash) F(bodies hash))
//	F(x)            = length of x in four bytes, big endian, then x
//	bodies hash     = SHA-256(F(media type 1) F(data 1) F(media type 2) ...)
//
// A relayed, replayed or mixed quote therefore fails. Package quote holds the
// verifier's core with its own strict parser. Evidence is either affirmed by
// every Appraiser or refused with every reason; revocation is looked at when a
// challenge is minted and again at the verdict. Secrets pass the TPM's bus
// only in sessions salted to a pinned endorsement key.
//
// Further keys that evidence attests (NodeConfig.Keys) are certified over the
// same formula with the purpose "key" and no bodies.
//
// # What it does not defend against
//
// An attacker who breaks the TPM itself, or one on its bus who alters what
// firmware measures before this code runs. A TPM with several certified
// endorsement keys has several possible names: admit nodes by a list or a token
// (RegistrarConfig.Admit, Endorsers.Allowed), not by maker alone. What a node
// read before it was revoked stays read. The policy in the TCG's template of a
// maker's attestation key (IAK) guards credential activation, so nodes enrol
// with a key of the same attributes without that policy; package devid quotes
// and certifies with the maker's.
//
// # Compatibility
//
// Messages carry a version; Parse reads the current version and the one
// before. testdata holds vectors of the formula and a golden file of each
// message.
package attest
