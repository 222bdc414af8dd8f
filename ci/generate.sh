#!/usr/bin/env bash
# ci/generate.sh [PART [ARGUMENT...]]: makes everything anew that is generated.
#
#	figures       docs/stolen-node.md, docs/page.png, docs/footprint.md (5 minutes)
#	oscal         docs/compliance.md; dist/oscal/ with the component definition
#	              and the assessment results of a run of all tests (10 minutes)
#	performance   docs/performance.md and its data (15 minutes; wants a machine
#	              that does nothing else). Arguments: -rounds N, -limit TIME,
#	              -fresh, and parts, which "performance -list" names.
#	page          docs/performance.md from the data that are there (seconds)
#	all           figures, oscal and performance, as without an argument
#
# A run that was stopped goes on where it was: performance keeps its rounds as
# long as the code is the same, oscal the run of the tests. What a part needs
# beyond Go is told when it is missing; as root with apt-get, what is in
# ci/packages.txt, and for the peers: rauc dbus squashfs-tools.
set -euo pipefail
cd "$(dirname "$0")/.."
. ci/lib.sh
part=${1:-all}
[ $# -eq 0 ] || shift
start=$SECONDS
export TRUSTTREE_CORPUS="${TRUSTTREE_CORPUS:-$PWD/../shared/corpus}"

missing() { # missing PROGRAM PACKAGE...
	local program=$1
	shift
	PATH="$PATH:/usr/sbin:/sbin:/usr/lib/postgresql/15/bin" command -v "$program" >/dev/null || echo "without $program: apt-get install $*"
}

performance() {
	case " $* " in *" -list "*) go run ./internal/perf/measure "$@"; return ;; esac
	say "performance: docs/performance.md"
	missing rauc rauc dbus squashfs-tools
	missing stunnel stunnel4
	missing haproxy haproxy
	missing gocryptfs gocryptfs fuse3
	missing mkfs.ext4 e2fsprogs
	missing postgres postgresql
	missing swtpm swtpm swtpm-tools
	[ "$(id -u)" = 0 ] || echo "not root: no volumes on a file system in memory, no RAUC"
	[ -d "$TRUSTTREE_CORPUS" ] || echo "without the corpus: no event logs of 50 KB (TRUSTTREE_CORPUS)"
	go build -o "$work/measure" ./internal/perf/measure
	"$work/measure" "$@"
}

figures() {
	say "figures: docs/stolen-node.md and docs/page.png"
	missing chromium chromium
	go test -count=1 -timeout 10m ./internal/e2e -run '^(TestThief|TestPageInABrowser)$' -update
	say "figures: docs/footprint.md"
	go build -o "$work/demo" ./examples/demo
	"$work/demo" >"$work/demo.txt"
	footprint >"$work/footprint.md"
	cp "$work/footprint.md" docs/footprint.md
	cat docs/footprint.md
}

# megabytes PACKAGE ARCH: size of its stripped program.
megabytes() {
	CGO_ENABLED=0 GOOS=linux GOARCH=$2 GOARM=7 go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$work/binary" "$1"
	stat -c %s "$work/binary" | awk '{ printf "%.1f MB", $1 / 1e6 }'
}

# peak PROGRAM: what the demo printed of its memory.
peak() { sed -n "s/.*peak memory: .*$1 \([0-9]*\) kB.*/\1/p" "$work/demo.txt" | tail -n 1 | awk '{ printf "%.0f MB", $1 * 1024 / 1e6 }'; }

footprint() {
	local p dir
	cat <<-HEAD
	# Footprint

	<!-- written by: ci/generate.sh figures -->

	Programs are built with
	\`CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w'\` for Linux by
	$(go env GOVERSION); peak memory (RSS) is what \`go run ./examples/demo\` prints for
	linux/$(go env GOARCH), of one node and a cloud with one node.

	| program | arm64 | arm (v7) | amd64 | peak memory |
	|---|---|---|---|---|
	HEAD
	for p in node cloud; do
		echo "| \`examples/$p\` | $(megabytes ./examples/$p arm64) | $(megabytes ./examples/$p arm) | $(megabytes ./examples/$p amd64) | $(peak $p) |"
	done
	cat <<-HEAD

	What each package brings alone: a program that imports it and does nothing else,
	built in the same way, and the modules linked besides this one and the standard
	library.

	| package | arm64 | modules linked |
	|---|---|---|
	HEAD
	for p in $packages; do
		dir=$(mktemp -d ./_footprint.XXXXXX) # the go command leaves it out of ./...
		printf 'package main\n\nimport _ "github.com/trusttree/trusttree/%s"\n\nfunc main() {}\n' "$p" >"$dir/main.go"
		echo "| \`$p\` | $(megabytes "$dir" arm64) | $(go list -deps -f '{{with .Module}}{{.Path}}{{end}}' "$dir" | sort -u | grep -v '^github.com/trusttree/trusttree$' | grep -c . || true) |"
		rm -r "$dir"
	done
	printf '| nothing | %s | 0 |\n' "$(empty)"
}

empty() {
	local dir
	dir=$(mktemp -d ./_footprint.XXXXXX)
	printf 'package main\n\nfunc main() {}\n' >"$dir/main.go"
	megabytes "$dir" arm64
	rm -r "$dir"
}

oscal() {
	local out=dist/oscal run
	say "oscal: docs/compliance.md"
	go test -count=1 ./internal/controls -run '^TestDocIsGenerated$' -update
	mkdir -p "$out"
	run="$out/tests-$(git rev-parse --short=12 HEAD).json"
	if [ ! -s "$run" ]; then
		say "oscal: a run of all tests, which the assessment results are of"
		CI=true go test -json -timeout 20m ./... >"$run.part" || echo "some tests failed; the results say which"
		mv "$run.part" "$run"
	fi
	go build -o "$work/compliance" ./examples/compliance
	"$work/compliance" -oscal component -tests "$run" >"$out/component-definition.json" || [ $? = 3 ]
	"$work/compliance" -oscal results -tests "$run" >"$out/assessment-results.json" || [ $? = 3 ]
	ls -l "$out"/*.json
}

work=$(mktemp -d)
trap 'rm -rf "$work" ./_footprint.*' EXIT
case $part in
performance) performance "$@" ;;
page) go run ./internal/perf/measure -render ;;
figures | oscal)
	[ $# -eq 0 ] || { echo "usage: $part takes no argument" >&2; exit 2; }
	$part
	;;
all)
	figures
	oscal
	performance -limit 13m
	;;
*)
	sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2
	exit 2
	;;
esac
printf '\n%s: %s s\n' "$part" $((SECONDS - start))
