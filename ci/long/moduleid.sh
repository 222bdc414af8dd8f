#!/bin/bash
# moduleid.sh: full figures of package moduleid: every byte of every recorded
# exchange flipped, the other process killed at every transfer, a real I2C bus
# in a virtual machine (qemu-system-x86; downloads Debian's kernel package),
# fuzzing, and the benchmarks: sixteen chips pipelined and one by one, and the
# host's cost beside the bare verification.
set -eu
cd "$(dirname "$0")/../.."
export TRUSTTREE_LONG=1 CI="${CI:-true}"
seconds="${FUZZ_SECONDS:-120}"

echo "== tests"
go test -count=1 -timeout 60m ./moduleid/... ./examples/modulescan

echo "== fuzz targets, $seconds s each"
. ci/lib.sh
fuzz "$seconds" ./moduleid/...

echo "== benchmarks"
go test -run '^$' -bench SixteenChips -benchtime 10x ./moduleid/atecc | grep -E '^(Benchmark|cpu)'
go test -run '^$' -bench HostCost -benchtime 2s -count 5 ./moduleid/atecc | grep -E '^(Benchmark|cpu)'
