// Package tlsconn carries everything that leaves a node, or reaches it, through
// mutually authenticated TLS 1.3 tunnels that are inspected at both ends.
//
// Start with NewClient at the node and NewGateway in the cloud. Both take a
// Config whose Identity, Trust, Authorize and Policy are required. The key of
// an Identity is a crypto.Signer and may live in a TPM. Client.DialContext
// opens flows that fit an http.Transport; Gateway.Handle serves named services
// to nodes; Gateway.Serve also relays to destinations that the policy names.
//
// # What it implements
//
// TLS 1.3 (RFC 8446) with hybrid post-quantum key exchange, X.509 SPIFFE IDs
// (SPIFFE-ID and X509-SVID), CRLs (RFC 5280), and exported keying material
// (RFC 8446, 7.5) that binds a node's evidence to its session. Streams are
// multiplexed by the protocol of yamux.
//
// # What it defends against
//
// A peer that is revoked, expires, loses its Attestation Result or is denied by
// a new policy is cut within a second, its streams reset and the reason
// audited. No flow passes before the node is attested, when the gateway asks
// for it. Both ends evaluate their own policy, on the identity in the
// certificate; what no rule allows is denied. Destinations are resolved once,
// every answer is classified, and the literal address is dialled: metadata,
// loopback, link-local and private addresses are reached only where a rule
// names them. An end of file is passed on only when it was clean on both
// layers; what was cut arrives as a reset. Memory, streams, rates and waits
// that a peer controls are bounded by Limits.
//
// # What it does not defend against
//
// An attested node may send false content through the flows it is allowed: the
// policy and the caps bound what that reaches. Code on the node that goes round
// this package is stopped by the kernel rules that sub-package confine
// generates, not by this one. CRL numbers are remembered over restarts only with
// a TrustOptions.CRLs store.
//
// # Events
//
// The Logger's attribute "event" is tunnel.up, tunnel.refused, tunnel.attested,
// tunnel.reattest, tunnel.drain, tunnel.cut or tunnel.down for a tunnel's life;
// flow.allowed, flow.denied or flow.report for each flow's record; accept.failed,
// resolve.failed, dial.failed, evidence.failed and drain.timeout for what to look
// into. TunnelEvent and FlowRecord hold the same facts.
//
// # Compatibility
//
// Frames and policy documents carry version 1. Readers accept the current
// version and the one before it.
package tlsconn
