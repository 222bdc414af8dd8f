// Package registry says what package attest keeps about nodes, and where: a
// DeviceStore with compare-and-swap for the nodes themselves, a ChallengeStore
// with an atomic take for challenges that wait for their answer. Registrars
// and verifiers hold no state of their own, so that any number of them serve
// one registry.
//
// Both interfaces are small enough for any key-value store with a conditional
// put: Device.Marshal and ParseDevice are the stored format (strict JSON with
// a format number). registrytest checks an implementation. The ones here keep
// everything in memory.
package registry
