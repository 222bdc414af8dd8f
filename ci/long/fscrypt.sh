#!/bin/bash
# Full figures of package fscrypt. Needs root for mounts and virtual machines.
#
#   ci/long/fscrypt.sh [tests|fuzz|bench|all]
#
# tests: the suite on swtpm with the race detector, every threat by its name,
# f2fs and UBIFS under Debian's kernel in a virtual machine, the memory scan
# with erasing built in. fuzz: FUZZ_SECONDS for each target (60). bench: beside
# age and gocryptfs on an ext4 file system in memory, and every bar with
# whether it is met.
set -eu
cd "$(dirname "$0")/../.."
. ci/lib.sh
part=${1:-all}
case $part in all | tests | fuzz | bench) ;; *) echo "usage: $0 [tests|fuzz|bench|all]" >&2; exit 2 ;; esac

tests() {
	say "suite on swtpm, kernel mode, f2fs and UBIFS"
	CI=true TRUSTTREE_LONG=1 go test -race -timeout 60m ./fscrypt/... ./examples/volume
	say "memory scan: copies of the key after sealing and unsealing (bar: 0 with runtimesecret)"
	for experiment in "" runtimesecret; do
		GOEXPERIMENT=$experiment go test -count=1 -run MemoryScan -v ./fscrypt | sed -n "s/.*: \([0-9]* copies\)/${experiment:-plain build}: \1/p"
	done
	say "system calls added by kernel mode (bar: none), handles left after 100 refusals (bar: 0)"
	CI=true TRUSTTREE_TPM=swtpm go test -count=1 -run 'KernelModeAddsNoSystemCall|RefusalsLeakNoHandles' -v ./fscrypt | grep -E '^(---|ok|FAIL)'
}

fuzzing() {
	say "fuzzing"
	fuzz "${FUZZ_SECONDS:-60}" ./fscrypt/...
}

# bench prints the benchmarks' own lines, then each bar: the quotient of the
# medians of interleaved runs.
bench() {
	say "benchmarks beside age and gocryptfs"
	local dir count=${BENCH_COUNT:-5}
	dir=$(mktemp -d)
	# shellcheck disable=SC2064
	trap "umount '$dir/mnt' 2>/dev/null || true; rm -rf '$dir'; rm -f /dev/shm/fscrypt-bench.img" EXIT
	dd if=/dev/zero of=/dev/shm/fscrypt-bench.img bs=1M count=1024 status=none # written, so that no run pays for its memory
	mkfs.ext4 -q -F -E nodiscard /dev/shm/fscrypt-bench.img
	mkdir "$dir/mnt"
	mount -o loop /dev/shm/fscrypt-bench.img "$dir/mnt"
	go test -c -o "$dir/test" ./fscrypt
	for _ in $(seq "$count"); do
		for b in StreamWrite StreamRead CreateSmall OpenReadSmall RandomRead Unlock; do
			(cd fscrypt && TRUSTTREE_LONG=1 TRUSTTREE_BENCH="$dir/mnt" "$dir/test" -test.run '^$' -test.bench "^Benchmark$b\$" -test.benchtime "${BENCH_TIME:-2s}")
		done
	done | grep ^Benchmark | tee "$dir/out"
	say "bars (medians of $count runs)"
	bar "$dir/out" "stream write / age" StreamWrite fscrypt age 0.95
	bar "$dir/out" "stream read / age" StreamRead fscrypt age 1.0
	bar "$dir/out" "fsynced 4 KiB creates / gocryptfs" CreateSmall fscrypt gocryptfs 2.5
	bar "$dir/out" "open and read 4 KiB / gocryptfs" OpenReadSmall fscrypt gocryptfs 3
	bar "$dir/out" "random 4 KiB reads, warm / gocryptfs" RandomRead fscrypt gocryptfs 1
	bar "$dir/out" "full unlock within 2x of bare unseal" Unlock full bare 0.5
}

# bar FILE WHAT BENCHMARK OURS PEER LEAST: speed of ours as a multiple of the
# peer's.
bar() {
	local ours peer
	ours=$(median "$1" "Benchmark$3/$4") peer=$(median "$1" "Benchmark$3/$5")
	awk -v what="$2" -v ours="$ours" -v peer="$peer" -v least="$6" 'BEGIN {
		if (ours == "" || peer == "") { printf "%-42s not measured\n", what; exit }
		q = peer / ours
		printf "%-42s %5.2fx, bar %.2fx: %s\n", what, q, least, (q >= least ? "met" : "NOT MET")
	}'
}

# median FILE NAME: nanoseconds for one operation.
median() {
	awk -v name="$2" '{ n = $1; sub(/-[0-9]+$/, "", n) } n == name { print $3 }' "$1" | sort -n | awk '{ v[NR] = $1 } END { if (NR) print v[int((NR + 1) / 2)] }'
}

if [ "$part" = all ] || [ "$part" = tests ]; then tests; fi
if [ "$part" = all ] || [ "$part" = fuzz ]; then fuzzing; fi
if [ "$part" = all ] || [ "$part" = bench ]; then bench; fi
