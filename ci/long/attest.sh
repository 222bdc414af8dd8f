#!/bin/bash
# Full figures of package attest: the fleet of 10,000 nodes, all tests on
# swtpm too, a minute of each fuzz target, and the quote verifier beside its
# peers. Needs swtpm, swtpm-tools and tpm2-tools.
set -eu
cd "$(dirname "$0")/../.."
echo "== fleet: 10,000 simulated nodes against one verifier process"
TRUSTTREE_LONG=1 go test ./attest -run 'TestFleet$' -v -timeout 20m | grep -E 'nodes enrolled|^(ok|FAIL|---)'
echo "== all tests on swtpm"
TRUSTTREE_TPM=swtpm go test ./attest/... -timeout 20m
echo "== fuzzing"
for pkg in ./attest ./attest/quote ./attest/ear ./attest/devid; do
	for target in $(go test "$pkg" -list '^Fuzz' | grep '^Fuzz'); do
		go test "$pkg" -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-60s}" | tail -1 | sed "s|^|$target: |"
	done
done
echo "== quotes verified, beside peers (cpu-ns/op is processor time)"
(cd attest/internal/peerbench && go test -bench . -benchtime "${BENCHTIME:-2s}" -count 3 .)
