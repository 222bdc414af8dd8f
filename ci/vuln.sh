#!/usr/bin/env bash
# Looks for known vulnerabilities in what the packages and examples call:
#
#	ci/vuln.sh [DATABASE]
#
# DATABASE is a URL, or a directory with a copy of the Go vulnerability database
# (file:///…); empty means the public one. Exit status: 0 none found, 3 found,
# 4 the database can't be reached, so that nothing is known, 1 anything else.
set -uo pipefail
cd "$(dirname "$0")/.."
db=${1:-}
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
(cd internal/tools && go build -o "$tools/" golang.org/x/vuln/cmd/govulncheck) || exit 1
"$tools/govulncheck" ${db:+-db "$db"} ./... >"$tools/out" 2>&1
status=$?
cat "$tools/out"
if grep -qE 'fetching vulnerabilities|dial tcp|no such host|Forbidden|connection refused|HTTP GET' "$tools/out"; then
	echo "the vulnerability database was not reached: nothing is known"
	exit 4
fi
exit $status
