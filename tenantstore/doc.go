// Package tenantstore keeps each tenant's data in an instance of its own, under
// a key of its own, behind a handle that only an authenticated principal gets.
//
// Start with [Open], which needs a directory, a [KeyProvider] (sub-package
// keys) and the owner's public key, and with [Store.Authenticate], which turns
// a verified client certificate and a stream name into a [Principal] by
// assignments that the owner signed ([SignAssignments], [Store.Assign]).
// [Store.Tenant] then opens the tenant of that principal: no call takes the
// name of a tenant whose data it would open.
//
// # What is on the disk
//
// An instance is one SQLite file (pure Go, no cgo), encrypted as a whole by
// Adiantum, or a PostgreSQL database (sub-package postgres, which alone links
// pgx). Above either, each value is sealed by XAES-256-GCM (C2SP) with the
// store, the tenant's random UID, the generation, the collection and the key in
// the associated data, so that nothing that is moved, swapped or changed opens.
// The tenant's data key is new in each generation; it is wrapped under a
// key-encryption key that the provider holds for this tenant alone. The names
// of collections and series never leave the process in clear; keys of records
// and times of points are visible to who runs a PostgreSQL engine.
//
// A reserved system instance holds the catalogue, the assignments and, through
// [Store.System], the registries of the application.
//
// # Audit
//
// Each control-plane action and each refusal is in a Merkle log (RFC 6962, C2SP
// tlog-checkpoint) before it takes effect; accesses are counted for each
// principal, collection and action and written within seconds. Bodies are
// sealed under the tenant's key. [Tenant.ExportAudit] and [VerifyAuditTrail]
// let a tenant verify its events offline without seeing another's. Each process
// of a shared store has a log of its own; exports of several logs, one behind
// the other, verify as one, and a log that is left out is named. Witnesses
// (C2SP tlog-witness) may cosign checkpoints: [Store.WitnessRequest]. The log is
// x/mod's tlog over two files rather than Tessera: one module instead of
// seventeen, a seventh of the bytes for each entry, and no goroutine.
//
// # What it defends against
//
// A principal of one tenant reaches no other, and can't tell one that exists
// from one that does not. Who copies the disk, a backup or the PostgreSQL
// server reads nothing. Who changes bytes is detected. A destroyed tenant stays
// destroyed, in backups too: its key is gone, and its UID is never used again.
//
// It does not defend a tenant against the process that opened the store: while
// an instance is open its key is in memory. It detects that a whole instance
// was put back to an older state only up to what the catalogue last noted, and
// that all files together were put back only by comparison with a checkpoint
// that somebody else kept ([Store.Checkpoint]) or cosigned ([Store.Cosign]).
//
// # Compatibility
//
// Stored formats carry a version; readers accept the current one and the one
// before it. Exported names may change until v1.0.0, as the CHANGELOG says.
package tenantstore
