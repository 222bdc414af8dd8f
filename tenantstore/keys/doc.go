// Package keys holds the key providers of tenantstore: who keeps the
// key-encryption keys of the tenants.
//
//   - OpenDir: a directory with one key file for each tenant, under a master
//     key that is a file, or sealed to a TPM so that the directory is of no use
//     on another machine.
//   - NewAge: the tenant's own age recipients around another provider; the
//     tenant can withhold the identity, the store can destroy the key.
//   - NewTransit: a transit secrets engine of OpenBao or Vault.
//
// Start with OpenDir.
package keys
