// Package city founds a small city for tests and the demo: a TPM maker, module
// makers, one or more instances of examples/cloud and any number of nodes of
// examples/node, all as separate processes with the binaries that a vendor
// would deploy. Each node has a software TPM with an EK certificate, an
// ATECC608 and an SPDM module at the wire, and boots the log of a real machine.
//
// Start with Build and Found. Nothing here protects anything.
package city
