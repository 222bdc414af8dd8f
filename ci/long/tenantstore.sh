#!/bin/bash
# tenantstore.sh: full figures of package tenantstore: 10,000 tenants, 500
# corruption trials, stress under the race detector, fuzzing, and benchmarks
# beside the bare engine. Needs postgresql, pgbouncer, age, swtpm, swtpm-tools.
set -eu
cd "$(dirname "$0")/../.."
export TRUSTTREE_LONG=1 CI="${CI:-true}"
fuzztime="${FUZZTIME:-5m}"

echo "== 10,000 tenants, 500 corruption trials, a million C2SP vectors"
go test -count=1 -timeout 60m -v -run 'TestManyTenants|TestCorruptionTrials|TestC2SPAccumulated' ./tenantstore ./tenantstore/internal/xaes | grep -E 'tenants:|trials:|^(---|ok|FAIL|panic)'
echo "== stress and kills under the race detector"
go test -count=1 -race -timeout 60m -run 'Stress|Stale|TestKillAtEveryStep' ./tenantstore
echo "== PostgreSQL, pgbouncer, keys"
go test -count=1 -timeout 30m ./tenantstore/... ./examples/tenants
echo "== fuzz targets, $fuzztime each"
for pkg in . ./engine ./keys ./internal/auditlog; do
  for target in $(go test -list '^Fuzz' "./tenantstore/$pkg" | grep '^Fuzz'); do
    echo "-- $pkg $target"
    go test -run '^$' -fuzz "^$target\$" -fuzztime "$fuzztime" "./tenantstore/$pkg" | tail -n 1
  done
done
echo "== benchmarks"
go test -run '^$' -bench . -benchtime 2s -count 3 ./tenantstore ./tenantstore/internal/xaes | grep -E '^(Benchmark|cpu|ok)'
