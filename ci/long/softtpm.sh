#!/bin/bash
# Full figures of the software TPM, each bar beside its figure:
#   tests  ten thousand TPMs in one process; the comparison with swtpm, of the
#          recorded scenarios and mutations, of the command streams of this
#          module's suites recorded anew, and of newly generated commands; the
#          suites themselves on swtpm; tpm2-tools; what runs with Go alone
#   fuzz   the command parser and the state file, ten minutes each
#   bench  creation, quote and others, swtpm beside
# Without an argument all. Needs swtpm, swtpm-tools, tpm2-tools and openssl.
set -eu
cd "$(dirname "$0")/../.."
. ci/lib.sh
part=${1:-all}
export TRUSTTREE_LONG=1 CI="${CI:-true}"
suites="attest secureboot/bootpolicy fscrypt update tenantstore/keys tlsconn internal/tpm internal/seams"

if [ "$part" = all ] || [ "$part" = tests ]; then
	say "ten thousand TPMs (bar: each at most 262144 bytes idle)"
	go test -count=1 -run TestManyTPMs -v ./internal/softtpm | grep -E 'TPMs,|^(ok|FAIL|---)'
	say "memory of the largest legal command (bar: 49152 bytes in all, 4096 at once)"
	go test -count=1 -run TestMemoryOfLegal -v ./internal/softtpm | grep -E 'allocates|^(ok|FAIL|---)' | tail -n 4
	say "compared with swtpm: $(cat internal/softtpm/testdata/swtpm/*.txt | grep -c -v mutated:) answers, $(grep -h mutated: internal/softtpm/testdata/swtpm/*.txt | sed 's/.*mutated: //' | tr ' ' '\n' | sed -n 's/^[0-9a-f]\{3\}\*\([0-9]*\)$/\1/p; s/^[0-9a-f]\{3\}$/1/p' | awk '{s+=$1} END {print s}') mutated commands, both as recorded and live"
	go test -count=1 -timeout 20m -run 'Recorded|SuitesStreams|GeneratedStreams' -v ./internal/softtpm | grep -E 'compared|^(ok|FAIL|---)'
	say "the suites' command streams, recorded now and played to both TPMs"
	streams=$(mktemp -d)
	for suite in $suites; do
		TRUSTTREE_LONG= TRUSTTREE_RECORD=$streams go test -count=1 -timeout 20m "./$suite/..." | grep -v 'no test files'
	done
	TRUSTTREE_STREAMS=$streams go test -count=1 -timeout 40m -run TestStreamsJust -v ./internal/softtpm | grep -E 'compared|^(ok|FAIL)|FAIL:'
	rm -rf "$streams"
	say "tpm2-tools"
	go test -count=1 -run TestTPM2Tools -v ./examples/softtpm | grep -E 'commands|^(ok|FAIL|---)'
	say "the suites on swtpm"
	for suite in $suites; do
		TRUSTTREE_LONG= TRUSTTREE_TPM=swtpm go test -count=1 -timeout 20m "./$suite/..." | grep -v 'no test files'
	done
	say "the tests and the demo with Go alone: no cgo, no other program"
	alone=$(mktemp -d)
	ln -s "$(command -v go)" "$alone/go"
	env -u CI -u TRUSTTREE_LONG CGO_ENABLED=0 PATH="$alone" "$alone/go" test ./... | grep -v 'no test files'
	env -u CI -u TRUSTTREE_LONG CGO_ENABLED=0 PATH="$alone" "$alone/go" run ./examples/demo
	rm -rf "$alone"
fi
if [ "$part" = all ] || [ "$part" = fuzz ]; then
	say "fuzzing (bar: no panic, no memory beyond what is above)"
	FUZZ_AT_ONCE=2 fuzz "${FUZZ_SECONDS:-600}" ./internal/softtpm ./attest/attesttest
fi
if [ "$part" = all ] || [ "$part" = bench ]; then
	say "benchmarks (bars: New/softtpm at most 5 ms, QuoteP256/softtpm at most 1 ms)"
	go test ./internal/softtpm -run '^$' -bench . -benchtime "${BENCHTIME:-2s}" -count 3
fi
