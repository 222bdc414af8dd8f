#!/bin/bash
# Full figures of the software TPM: ten thousand TPMs in one process, the
# comparison with swtpm, ten minutes of fuzzing, tpm2-tools and every package's
# suite on swtpm as second opinion, and the benchmarks beside swtpm. Needs
# swtpm, swtpm-tools, tpm2-tools and openssl.
set -eu
cd "$(dirname "$0")/../.."
export TRUSTTREE_LONG=1 CI="${CI:-true}"
echo "== ten thousand TPMs"
go test -count=1 -run TestManyTPMs -v ./internal/softtpm | grep -E 'TPMs,|^(ok|FAIL|---)'
echo "== compared with swtpm: $(cat internal/softtpm/testdata/swtpm/*.txt | grep -c -v mutated:) answers, $(grep -h mutated: internal/softtpm/testdata/swtpm/*.txt | sed 's/.*mutated: //' | tr ' ' '\n' | sed -n 's/^[0-9a-f]\{3\}\*\([0-9]*\)$/\1/p; s/^[0-9a-f]\{3\}$/1/p' | awk '{s+=$1} END {print s}') mutated commands"
go test -count=1 -run 'Recorded' ./internal/softtpm
echo "== tpm2-tools"
go test -count=1 -run TestTPM2Tools -v ./examples/softtpm | grep -E 'commands|^(ok|FAIL|---)'
echo "== the packages' suites on swtpm"
for pkg in attest secureboot fscrypt update tenantstore/keys internal/seams; do
	TRUSTTREE_LONG= TRUSTTREE_TPM=swtpm go test -count=1 -timeout 20m "./$pkg/..." | grep -v 'no test files'
done
echo "== fuzzing"
for target in FuzzCommands FuzzState; do
	go test ./internal/softtpm -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-10m}" -fuzzminimizetime 20x | tail -1 | sed "s|^|$target: |"
done
echo "== benchmarks"
go test ./internal/softtpm -run '^$' -bench . -benchtime "${BENCHTIME:-2s}" -count 3
