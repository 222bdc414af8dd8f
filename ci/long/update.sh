#!/bin/bash
# Full figures of package update: crash kit, model, SIGKILL rounds, fuzzing and
# benchmarks beside go-tuf's updater. Prints the figures.
set -eu
cd "$(dirname "$0")/../.."
export TRUSTTREE_LONG=1
go test -timeout 60m -v -run 'PowerCut|Model|SIGKILL|Waves|Cut|Delta' ./update | grep -E '^(ok|---|FAIL|panic)|cuts|traces|phases|wire'
for target in FuzzMetadata FuzzLint FuzzManifest FuzzDelta FuzzReport; do
	go test -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-60s}" ./update
done
GOMEMLIMIT=64MiB go test -run '^$' -bench '5GiB|Warm|Install' -benchtime 1x ./update
go test -run '^$' -bench 'GoTUF' -benchtime 1x ./update
