# Shared by .ci/run and .ci/long. Source it from the root of the checkout.
packages="attest moduleid secureboot fscrypt update tlsconn tenantstore"

say() { printf '\n== %s\n' "$*"; }

# ended_in_time OUTPUT: the fuzzer stopped because its time was over while a
# worker was busy, which it reports as a failure; it found nothing.
ended_in_time() {
	grep -q 'context deadline exceeded' "$1" && ! grep -qE 'Failing input|hung or terminated|panic' "$1"
}

# fuzz SECONDS DIR...: runs every fuzz target below the directories, each for
# that long, with one instrumented build for each package. FUZZ_AT_ONCE=2 runs
# two targets of a package side by side with one worker each. FUZZ_CORPUS names a
# directory in which what was found stays for the next run.
fuzz() {
	local seconds=$1 bin targets dir target failed=0 at_once=${FUZZ_AT_ONCE:-1} pids
	shift
	bin=$(mktemp -d)
	for dir in $(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}' "$@"); do
		targets=$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go 2>/dev/null | sed 's/^func //' | sort) || true
		[ -n "$targets" ] || continue
		(cd "$dir" && go test -c -fuzz=Fuzz -o "$bin/fuzz.test" .)
		pids=
		for target in $targets; do
			fuzz_target "$seconds" "$bin" "$dir" "$target" $((2 / at_once)) &
			pids="$pids $!"
			# shellcheck disable=SC2086
			set -- $pids
			[ $# -lt "$at_once" ] || { wait "$1" || failed=1; shift; pids="$*"; }
		done
		for pid in $pids; do wait "$pid" || failed=1; done
	done
	rm -rf "$bin"
	return $failed
}

fuzz_target() { # fuzz_target SECONDS BIN DIR TARGET WORKERS
	local out="$2/out.$4" corpus="${FUZZ_CORPUS:-$2/cache}/${3#"$PWD"/}"
	(cd "$3" && "$2/fuzz.test" -test.run='^$' -test.fuzz="^$4\$" -test.fuzztime="$1s" \
		-test.fuzzminimizetime=20x -test.fuzzcachedir="$corpus" -test.parallel="$5" >"$out" 2>&1) ||
		ended_in_time "$out" ||
		{ cat "$out"; echo "fuzz target $4 in $3 failed"; return 1; }
	printf '%s %s: %s\n' "${3#"$PWD"/}" "$4" "$(grep -E '^fuzz: elapsed' "$out" | tail -n 1)"
}
