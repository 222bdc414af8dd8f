#!/bin/bash
# Full figures of package fscrypt: the suite on swtpm, the memory scan with
# erasing built in, longer fuzzing, and the benchmarks beside age and
# gocryptfs on an ext4 file system in memory. Needs root for the mounts.
set -eu
cd "$(dirname "$0")/../.."
export TRUSTTREE_LONG=1
CI=true go test -race -timeout 30m ./fscrypt/... ./examples/volume
GOEXPERIMENT=runtimesecret go test -count=1 -run MemoryScan -v ./fscrypt
for f in FuzzHeader FuzzSlots FuzzJournal FuzzRelease; do
	go test -run '^$' -fuzz "^$f\$" -fuzztime 60s ./fscrypt
done
dir=$(mktemp -d)
trap 'umount "$dir/mnt" 2>/dev/null || true; rm -rf "$dir"; rm -f /dev/shm/fscrypt-bench.img' EXIT
dd if=/dev/zero of=/dev/shm/fscrypt-bench.img bs=1M count=1024 status=none # written, so that no run pays for its memory
mkfs.ext4 -q -F -E nodiscard /dev/shm/fscrypt-bench.img
mkdir "$dir/mnt"
mount -o loop /dev/shm/fscrypt-bench.img "$dir/mnt"
TRUSTTREE_BENCH="$dir/mnt" go test -run '^$' -bench . -benchtime 3s -count 3 ./fscrypt
