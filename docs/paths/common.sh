# Sourced by the scripts beside it: where the commands and the working directory
# are, and how to leave. BIN may name a directory with the commands already
# built; DIR a new directory to work in.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
DIR=${DIR:-$(mktemp -d)}
mkdir -p "$DIR"
DIR=$(CDPATH= cd -- "$DIR" && pwd)
BIN=${BIN:-}
if [ -z "$BIN" ]; then
	BIN=$DIR/bin
	mkdir -p "$BIN"
	(cd "$here/../.." && go build -o "$BIN" ./examples/cloud ./examples/node ./examples/softtpm \
		./examples/volume ./examples/publish ./examples/tufclient ./examples/webserver filippo.io/age/cmd/age-keygen)
fi
cd "$DIR"
running=
trap 'for p in $running; do kill "$p" 2>/dev/null || true; done' EXIT

say() { printf '\n# %s\n' "$*"; }

# want CODE COMMAND...: the command must end with that exit code.
want() {
	code=$1
	shift
	got=0
	"$@" || got=$?
	[ "$got" = "$code" ] || { echo "$0: $* ended with $got, not $code" >&2; exit 1; }
}

# until_true COMMAND...: waits at most 60 s.
until_true() {
	for _ in $(seq 300); do
		if "$@" >/dev/null 2>&1; then return 0; fi
		sleep 0.2
	done
	echo "$0: in vain: $*" >&2
	exit 1
}

# tpm NAME: the power of the TPM in that directory goes off and on: a reboot.
tpmpid=
tpm() {
	if [ -n "$tpmpid" ]; then
		kill "$tpmpid"
		wait "$tpmpid" || true
	fi
	rm -f tpm.sock
	"$BIN/softtpm" -dir "$1" -socket "$DIR/tpm.sock" >"$1.log" 2>&1 &
	tpmpid=$!
	running="$running $tpmpid"
	until_true test -S tpm.sock
}
