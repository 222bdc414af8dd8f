// Package wire is what the example node and the example cloud say to each
// other: bootstrap.json, the frames of the attestation stream, the bodies of
// the HTTP requests. Everything is strict JSON with a version; unknown fields
// are refused and sizes are capped. It also holds what both daemons are alike
// in: the exit codes of commands, and what they tell the service manager.
package wire
