#!/bin/sh
# A node of your own enrols at a cloud of your own, with a software TPM that
# protects nothing, and gets its certificate. Needs Go alone.
. "$(dirname -- "$0")/common.sh"
PORT=${PORT:-8440}

say "a TPM, and its maker's certificates"
tpm chip
cat chip.log

say "a cloud, which takes TPMs of this maker"
"$BIN/cloud" init -state city -domain city.example -host 127.0.0.1 \
	-enroll-port "$PORT" -gateway-port "$((PORT + 1))" -api-port "$((PORT + 2))"
cp chip/maker.pem city/tpm-makers/
"$BIN/cloud" serve -state city -check
"$BIN/cloud" serve -state city 2>cloud.log &
running="$running $!"
until_true grep -q cloud.ready cloud.log

say "a node"
mkdir policies
: >event-log # a real node: the firmware's log, where the kernel shows it
cat >node.json <<END
{
  "version": 1,
  "state": "$DIR/state", "run": "$DIR/run",
  "bootstrap": "$DIR/city/bootstrap.json",
  "tpm": "unix:$DIR/tpm.sock", "tpm_makers": "$DIR/chip/maker.pem",
  "event_log": "$DIR/event-log", "policies": "$DIR/policies", "flows": "$DIR/city/flows.json",
  "hardware": "streetlight-1", "channel": "stable", "image": "1.0.0"
}
END
"$BIN/node" run -config node.json -check
"$BIN/node" run -config node.json 2>node.log &
running="$running $!"
enrolled() { "$BIN/node" status -config node.json | grep -q '^identity  *ok'; }
judged() { "$BIN/node" status -config node.json | grep -q '^attested'; }
until_true enrolled

say "its tree of trust: enrolled, and not yet attested: this TPM measured no boot"
until_true judged
"$BIN/node" status -config node.json
