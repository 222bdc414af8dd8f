#!/bin/bash
# Full figures of tlsconn: 10,000 streams under reloads, fuzzing, and the relays
# of other vendors beside ours (stunnel4, haproxy, nginx-light, nftables, tcpdump).
# tlsconn.sh [tests|fuzz|bench] runs one part. bench prints each bar beside its
# target; TLSCONN_ROUNDS and TLSCONN_MINUTES bound it.
set -eu
cd "$(dirname "$0")/../.."
. ci/lib.sh
part=${1:-all}
export TRUSTTREE_LONG=1
if [ "$part" = all ] || [ "$part" = tests ]; then
	say "tests"
	go test -race -count=1 -timeout 20m ./tlsconn ./tlsconn/mud ./tlsconn/confine ./tlsconn/internal/mux
	go test -race -count=1 -timeout 15m -skip '^TestBesidePeers$' ./tlsconn/internal/interop
fi
if [ "$part" = all ] || [ "$part" = fuzz ]; then
	say "fuzz"
	fuzz "${FUZZ_SECONDS:-${FUZZTIME:-60}}" ./tlsconn/...
fi
if [ "$part" = all ] || [ "$part" = bench ]; then
	say "bench"
	go test -run xxx -bench . -benchmem -benchtime 2s -timeout 10m ./tlsconn
	go test -count=1 -timeout 40m -v -run '^TestBesidePeers$' ./tlsconn/internal/interop | grep -vE '^(=== )'
	go test -count=1 -v -run '^TestLiveTunnelIsCutWithinASecond$' ./tlsconn | grep -E '^(---|    ---|ok|FAIL)'
fi
