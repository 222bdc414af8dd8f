#!/bin/bash
# secureboot.sh: full figures of package secureboot: real machines (refused
# images too), ten minutes of each fuzz target, benchmarks beside the peers.
set -eu
cd "$(dirname "$0")/../.."
export TRUSTTREE_LONG=1 CI="${CI:-true}"
seconds="${FUZZ_SECONDS:-600}"

echo "== tests, and machines that boot"
go test -count=1 -timeout 40m -v -run 'TestRealMachine|TestRefusedImageFails' ./secureboot ./internal/testvm | grep -E '^(---|ok|FAIL|panic)|booted'
go test -count=1 ./secureboot/... ./examples/bootcheck

echo "== fuzz targets, $seconds s each"
. ci/lib.sh
fuzz "$seconds" ./secureboot/...

echo "== benchmarks"
go test -run '^$' -bench . -benchtime 2s -count 3 ./secureboot ./secureboot/ima | grep -E '^(Benchmark|cpu|ok)'

echo "== parse and replay beside go-eventlog and go-attestation"
corpus="${TRUSTTREE_CORPUS:-$PWD/../shared/corpus}"
(cd secureboot/internal/peerbench && TRUSTTREE_CORPUS="$corpus" go test -run '^$' -bench . -benchtime 1s -count 3 . | grep -E '^(Benchmark|cpu|ok)')
