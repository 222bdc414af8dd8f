#!/bin/bash
# secureboot.sh [tests|fuzz|bench]: full figures of package secureboot. tests:
# every byte of every recorded boot, real machines (refused images too). fuzz:
# ten minutes of each target. bench: the bars, each beside its figure, and the
# peers. Without an argument all of them.
set -eu
cd "$(dirname "$0")/../.."
export TRUSTTREE_LONG=1 CI="${CI:-true}" TRUSTTREE_CORPUS="${TRUSTTREE_CORPUS:-$PWD/../shared/corpus}"
part="${1:-all}"
. ci/lib.sh

if [ "$part" = all ] || [ "$part" = tests ]; then
	say "machines that boot: good, Secure Boot off, tampered, wrong key, unsigned"
	go test -count=1 -timeout 40m -v -run 'TestRealMachine|TestRefusedImageFails' ./secureboot ./internal/testvm | grep -E '^(---|ok|FAIL|panic)|booted'
	say "every byte of every recorded boot, and all other tests"
	go test -count=1 -timeout 40m -skip TestRealMachine ./secureboot/... ./examples/bootcheck
fi

if [ "$part" = all ] || [ "$part" = fuzz ]; then
	seconds="${FUZZ_SECONDS:-600}"
	say "fuzz targets, $seconds s each"
	fuzz "$seconds" ./secureboot/... ./examples/bootcheck
fi

if [ "$part" = all ] || [ "$part" = bench ]; then
	say "benchmarks (time of an idle machine)"
	out=$(mktemp)
	trap 'rm -f "$out"' EXIT
	go test -run '^$' -bench . -benchtime "${BENCHTIME:-2s}" -count 3 ./secureboot ./secureboot/ima | grep -E '^(Benchmark|cpu|ok)' | tee "$out"
	say "parse and replay beside go-eventlog and go-attestation"
	(cd secureboot/internal/peerbench && go test -run '^$' -bench . -benchtime "${BENCHTIME:-1s}" -count 3 .) | grep -E '^(Benchmark|cpu|ok)' | tee -a "$out"
	say "bars (best of three)"
	awk '
	/^Benchmark/ {
		name = $1; sub(/^Benchmark/, "", name); sub(/-[0-9]+$/, "", name)
		for (i = 3; i < NF; i += 2) {
			v = $i; key = name " " $(i + 1)
			if (!(key in best) || ($(i + 1) == "appraisals/s" ? v > best[key] : v < best[key])) best[key] = v
		}
		names[name] = 1
	}
	function bar(what, figure, unit, ok, target) { printf "%-66s %12.5g %-13s target %-10s %s\n", what, figure, unit, target, ok ? "met" : "NOT MET"; bad += !ok }
	END {
		for (n in names) if (n ~ /^ParseAndReplay\/.*-4[0-9]k\/trusttree$/) { # logs of some 50 KB
			base = n; sub(/\/trusttree$/, "", base)
			short = base; sub(/^ParseAndReplay\//, "", short)
			ns = best[n " ns/op"]
			bar("parse and replay, " short, ns / 1000, "us", ns <= 40000, "<= 40")
			bar("parse and replay, " short, best[n " allocs/op"], "allocations", best[n " allocs/op"] <= 10, "<= 10")
			for (p = 1; p <= 2; p++) {
				peer = base "/" (p == 1 ? "go-eventlog" : "go-attestation")
				bar("times as fast as " (p == 1 ? "go-eventlog" : "go-attestation") ", " short, best[peer " ns/op"] / ns, "times", best[peer " ns/op"] >= 3 * ns, ">= 3")
			}
		}
		for (n in names) if (n ~ /^Appraise\//) bar("appraisals without signatures, " n, best[n " appraisals/s"], "1/s", best[n " appraisals/s"] >= 20000, ">= 20000")
		for (n in names) if (n ~ /^Hostile1MiB\//) {
			bar("hostile 1 MiB, " n, best[n " ns/op"] / 1e6, "ms", best[n " ns/op"] <= 20e6, "<= 20")
			bar("hostile 1 MiB, " n, best[n " B/op"] / 1048576, "MiB", best[n " B/op"] <= 8388608, "<= 8")
		}
		v = best["Verify100000Entries ns/op"]; r = best["Resume100OfOne100000 ns/op"]
		bar("IMA log of 100,000 entries", v / 1e9, "s", v <= 0.25e9, "<= 0.25")
		bar("100 entries more, of the time of 100,000", r / v * 1000, "thousandths", r <= v / 200, "<= 5")
		print (bad ? bad " bars are not met" : "all bars are met")
	}' "$out"
fi
