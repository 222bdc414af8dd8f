# Shared by .ci/run and .ci/long. Source it from the root of the checkout.
packages="attest moduleid secureboot fscrypt update tlsconn tenantstore"

say() { printf '\n== %s\n' "$*"; }

# ended_in_time OUTPUT: the fuzzer stopped because its time was over while a
# worker was busy, which it reports as a failure; it found nothing.
ended_in_time() {
	grep -q 'context deadline exceeded' "$1" && ! grep -qE 'Failing input|hung or terminated|panic' "$1"
}

# fuzz SECONDS DIR...: runs every fuzz target below the directories, each for
# that long, with one instrumented build for each package.
fuzz() {
	local seconds=$1 bin targets dir target
	shift
	bin=$(mktemp -d)
	for dir in $(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}' "$@"); do
		targets=$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go 2>/dev/null | sed 's/^func //' | sort) || true
		[ -n "$targets" ] || continue
		(cd "$dir" && go test -c -fuzz=Fuzz -o "$bin/fuzz.test" .)
		for target in $targets; do
			(cd "$dir" && "$bin/fuzz.test" -test.run='^$' -test.fuzz="^$target\$" -test.fuzztime="${seconds}s" \
				-test.fuzzminimizetime=20x -test.fuzzcachedir="$bin/cache" -test.parallel=2 >"$bin/out" 2>&1) ||
				ended_in_time "$bin/out" ||
				{ cat "$bin/out"; echo "fuzz target $target in $dir failed"; return 1; }
			printf '%s %s: %s\n' "${dir#"$PWD"/}" "$target" "$(grep -E '^fuzz: elapsed' "$bin/out" | tail -n 1)"
		done
	done
	rm -rf "$bin"
}
