#!/bin/bash
# Full figures of package update, each beside its bar. An argument runs one part:
#   tests  crash kit, model, 200 SIGKILL rounds, delta of a 925 MiB ext4 image, waves
#   fuzz   every fuzz target for FUZZ_SECONDS (60)
#   bench  beside go-tuf's updater, and 5 GiB under a memory limit
set -eu
cd "$(dirname "$0")/../.."
. ci/lib.sh
export TRUSTTREE_LONG=1
part=${1:-all}

if [ "$part" = all ] || [ "$part" = tests ]; then
	say "update: tests in full (bars: no brick at any cut; 200 kills; 20 MiB of 925 on the wire; waves within 0.5 %; 21 % refetched)"
	go test -count=1 -timeout 60m -v -run 'PowerCut|Model|SIGKILL|Waves|Cut|Delta' ./update |
		grep -E '^(ok|---|FAIL|panic)|cuts|traces|phases|wire|bucket|share|Error'
	go test -count=1 -timeout 20m ./update/boot ./update/repository ./examples/tufclient ./examples/publish
fi
if [ "$part" = all ] || [ "$part" = fuzz ]; then
	say "update: fuzz targets"
	fuzz "${FUZZ_SECONDS:-60}" ./update/...
fi
if [ "$part" = all ] || [ "$part" = bench ]; then
	bin=$(mktemp -d)
	trap 'rm -rf "$bin"' EXIT
	go test -c -o "$bin/update.test" ./update
	bench() { (cd update && "$bin/update.test" -test.run '^$' -test.bench "$1" -test.benchtime "$2") | grep -E '^Benchmark|FAIL|panic'; }
	say "warm refresh against 100,000 targets (bars: 100 cpu-ms, 25 peak-MiB)"
	bench WarmRefresh 10x
	say "500 MiB fetched, verified, written, read back (bars: 1300 cpu-ms, 32 peak-MiB); below it, go-tuf fetches to a file"
	for _ in 1 2 3; do bench Install500MiB 1x; bench GoTUFDownload500MiB 1x; done
	say "500 MiB to a file (bars: 1300 cpu-ms, 32 peak-MiB)"
	bench DownloadFile500MiB 3x
	say "5 GiB under a 64 MiB memory limit (bar: it works; peak-MiB is the process's)"
	GOMEMLIMIT=64MiB bench 5GiB 1x
fi
