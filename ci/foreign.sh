#!/usr/bin/env bash
# ci/foreign.sh MODPROXY: takes each package alone, at a tagged version from a
# file proxy, into a foreign module and runs its Examples there.
set -euo pipefail
cd "$(dirname "$0")/.."
. ci/lib.sh
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
mkdir "$work/src"
git archive HEAD | tar -x -C "$work/src"
"$1" -dir "$work/src" -version v0.1.0 -out "$work/proxy"
# A module cache of its own, so that v0.1.0 is this tree and not an earlier one;
# everything else comes from the cache that is there.
upstream="file://$(go env GOMODCACHE)/cache/download,$(go env GOPROXY)"
export GOMODCACHE="$work/modcache" GOPROXY="file://$work/proxy,$upstream" GONOSUMDB=github.com/trusttree/trusttree GOFLAGS=-mod=mod
for p in $packages; do
	mkdir "$work/$p"
	(
		cd "$work/$p"
		go mod init "example.org/uses-$p" 2>/dev/null
		printf 'package uses\n\nimport _ "github.com/trusttree/trusttree/%s"\n' "$p" >uses.go
		go get -t "github.com/trusttree/trusttree/$p@v0.1.0" 2>/dev/null
		go build ./...
		go test -count=1 -run '^Example' "github.com/trusttree/trusttree/$p" | tee out.txt
		! grep -q 'no tests to run' out.txt || { echo "$p has no Example that runs"; exit 1; }
		for other in $packages; do
			[ "$other" = "$p" ] || ! go list -deps . | grep -q "^github.com/trusttree/trusttree/$other\$" ||
				{ echo "$p brings $other"; exit 1; }
		done
		printf '%s alone: %s modules\n' "$p" "$(go list -deps -f '{{with .Module}}{{.Path}}{{end}}' . | sort -u | grep -c .)"
	)
done
