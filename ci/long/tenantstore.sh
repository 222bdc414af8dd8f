#!/bin/bash
# tenantstore.sh [tests|fuzz|bench]: full figures of package tenantstore.
# tests: 10,000 tenants, 500 corruption trials, kills and stress under the race
# detector, PostgreSQL (kills at every step of it too) and pgbouncer. fuzz: every target for FUZZ_SECONDS (120).
# bench: the store beside the bare engine, each bar beside its figure.
# Needs postgresql, pgbouncer, age, swtpm, swtpm-tools.
set -eu
cd "$(dirname "$0")/../.."
. ci/lib.sh
export TRUSTTREE_LONG=1 CI="${CI:-true}"
part=${1:-all}

if [ "$part" = all ] || [ "$part" = tests ]; then
	say "10,000 tenants (256 handles, ulimit -n 1024, bars: < 64 threads, RSS < 200 MiB, create <= 60 ms), 500 corruption trials (bar: none silent), a million C2SP vectors"
	go test -count=1 -timeout 60m -v -run 'TestManyTenants|TestCorruptionTrials|TestC2SPAccumulated' ./tenantstore ./tenantstore/internal/xaes | grep -E 'tenants:|bars:|trials:|^(---|ok|FAIL|panic)'
	say "stress (8 goroutines, 500 tenants, 16 handles) and kills at every step under the race detector"
	go test -count=1 -race -timeout 60m -v -run 'Stress|Stale|TestKillAtEveryStep|Rotation|TestSystem' ./tenantstore | grep -E '^(---|ok|FAIL|panic)'
	say "PostgreSQL, pgbouncer, keys, the command"
	go test -count=1 -timeout 30m ./tenantstore/... ./examples/tenants
fi
if [ "$part" = all ] || [ "$part" = fuzz ]; then
	say "fuzz targets, ${FUZZ_SECONDS:-120} s each"
	fuzz "${FUZZ_SECONDS:-120}" ./tenantstore/...
fi
if [ "$part" = all ] || [ "$part" = bench ]; then
	say "shares of the bare engine (go-sqlite3 with its Adiantum VFS, same statements, page size, cache, sync), in turn; bars: batch 0.75, get 0.8, group commit 8 times"
	go test -run '^$' -bench 'Share|GroupCommit' -benchtime 3s -count 3 ./tenantstore | grep -E '^(Benchmark|cpu|ok)'
	say "each by itself; bar: creating a tenant 60 ms"
	go test -run '^$' -bench 'Batch1000|Get$|DurablePut|CreateTenant' -benchtime 2s -count 2 ./tenantstore | grep -E '^(Benchmark|ok)'
	say "a quiet tenant beside a noisy one: p99 of durable puts and gets"
	go test -run '^$' -bench 'NoisyNeighbour' -benchtime 1000x ./tenantstore | grep -E '^(Benchmark|ok)'
	go test -run '^$' -bench . -benchtime 1s ./tenantstore/internal/xaes | grep -E '^(Benchmark|ok)'
fi
