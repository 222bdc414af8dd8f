// Package wire is what the example node and the example cloud say to each
// other: bootstrap.json, the frames of the attestation stream, the bodies of
// the HTTP requests, and the exit codes of commands. Everything is strict JSON
// with a version; unknown fields are refused and sizes are capped.
package wire
