#!/bin/bash
# moduleid.sh [tests|fuzz|bench]: full figures of package moduleid: every byte
# of every recorded exchange flipped, the other process killed at every
# transfer (also on a real I2C bus in a virtual machine: qemu-system-x86, and
# Debian's kernel package is downloaded), tokens behind PKCS#11 and PC/SC
# (softhsm2, pcscd, vsmartcard-vpcd, libpcsclite-dev), fuzzing, and the
# benchmarks, each bar beside its target.
set -euo pipefail
cd "$(dirname "$0")/../.."
. ci/lib.sh
part=${1:-all}
export TRUSTTREE_LONG=1 CI="${CI:-true}"
seconds="${FUZZ_SECONDS:-120}"

if [ "$part" = tests ] || [ "$part" = all ]; then
	echo "== tests"
	go test -count=1 -timeout 60m ./moduleid/... ./examples/modulescan
	echo "== tokens behind PKCS#11 and PC/SC"
	(cd examples/signers && go vet ./... && go test -count=1 -timeout 10m ./...)
fi

if [ "$part" = fuzz ] || [ "$part" = all ]; then
	echo "== fuzz targets, $seconds s each"
	fuzz "$seconds" ./moduleid/...
fi

if [ "$part" = bench ] || [ "$part" = all ]; then
	echo "== benchmarks"
	out=$(mktemp)
	trap 'rm -f "$out"' EXIT
	go test -run '^$' -bench SixteenChips -benchtime 10x ./moduleid/atecc | grep -E '^(Benchmark|cpu)' | tee "$out"
	# Each run measures the verifier for a second and then the bare check; five
	# runs by turns (-count would repeat one side five times before the other),
	# of which the least of each side counts.
	for _ in 1 2 3 4 5; do
		go test -run '^$' -bench HostCost -benchtime 1s ./moduleid/atecc | grep -E '^Benchmark' | tee -a "$out"
	done
	awk '
		function least(name, v) { if (!(name in min) || v < min[name]) min[name] = v }
		{ sub(/-[0-9]+$/, "", $1); least($1, $3) }
		END {
			printf "\n%-58s %10s %10s\n", "bar", "measured", "target"
			p = min["BenchmarkSixteenChips/pipelined"] / 1e9; s = min["BenchmarkSixteenChips/one-by-one"] / 1e9
			printf "%-58s %8.2f s %10s %s\n", "16 chips at 100 kHz, pipelined", p, "<= 0.6 s", p <= 0.6 ? "met" : "MISSED"
			printf "%-58s %8.2f s %10s\n", "16 chips at 100 kHz, one by one", s, "about 2.4"
			r = min["BenchmarkHostCost/verifier"] / min["BenchmarkHostCost/bare"]
			printf "%-58s %8.2f x %10s %s\n", "host cost beside bare chain and signature (least of 5)", r, "<= 1.2 x", r <= 1.2 ? "met" : "MISSED"
		}' "$out"
fi
