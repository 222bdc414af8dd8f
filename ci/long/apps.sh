#!/bin/bash
# Full figures of the reference apps: ten minutes of a city of two instances
# and ten nodes with links cut and processes killed, what a thief gets, the
# operator page in a browser, and the node in a machine that boots for real.
# Needs root, iproute2, postgresql, chromium and what internal/testvm names.
set -eu
cd "$(dirname "$0")/../.."
part=${1:-all}
export TRUSTTREE_LONG=1 CI="${CI:-true}"
. ci/lib.sh
case $part in all | tests)
	go test -count=1 -timeout 60m -v ./internal/e2e | grep -E '^ +[a-z_]+_test.go|^(---|ok|FAIL|panic)'
	go test -count=1 ./examples/...
	;;
esac
case $part in all | fuzz) FUZZ_AT_ONCE=2 fuzz "${FUZZ_SECONDS:-120}" ./examples/... ;; esac
case $part in all | bench) go test -run '^$' -bench . -benchtime "${BENCHTIME:-10s}" ./internal/e2e | grep -E '^(Benchmark|cpu|ok)|bar' ;; esac
