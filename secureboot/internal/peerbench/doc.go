// Package peerbench measures the event log's parse and replay beside those of
// go-eventlog and go-attestation. It is a module of its own, so that the peers
// stay out of the SDK's dependencies.
package peerbench
