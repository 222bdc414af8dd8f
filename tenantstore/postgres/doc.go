// Package postgres is the engine of tenantstore that grows beyond one machine:
// PostgreSQL 13 or later, and what speaks its protocol.
//
// Each instance has a login role of its own and a database of its own, or, in
// schema mode (for thousands of tenants), a schema. The role owns nothing, may
// only read and write the rows of its one table, and is refused when it turns
// out to be superuser or to bypass row security. Its password comes from the
// tenant's key and reaches the server as a SCRAM-SHA-256 verifier, so neither
// the administrator's connection string nor a look at the catalogue opens a
// tenant, and a connection pooler that hands out somebody else's session is
// noticed. No session state is used: pgbouncer may pool transactions. The one
// exception goes past the pooler: a process that shares its system instance
// with others holds one connection to the server itself for LISTEN, so that it
// learns of their changes at once; when that fails it polls twice a second.
//
// What the server stores is sealed by tenantstore before: its administrator,
// pg_dump and the write-ahead log see the names of instances (random), kinds
// and sizes of records, record keys, and the times of points; not collections,
// series or values. Put nothing secret into record keys here.
//
// Start with [New] and pass the engine in tenantstore's Config.Placement.
package postgres
