// Peers of the benchmarks that bring dependencies which the library must not
// have.
module github.com/trusttree/trusttree/attest/internal/peerbench

go 1.26.0

require (
	github.com/google/go-attestation v0.6.4
	github.com/google/go-tpm-tools v0.4.11
	github.com/trusttree/trusttree v0.0.0
)

require (
	github.com/google/go-tpm v0.9.8 // indirect
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace github.com/trusttree/trusttree => ../../..
