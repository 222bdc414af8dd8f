#!/bin/sh
# A cloud and a node as separate processes, from an empty directory to a tenant
# that reads its node's records: docs/quickstart.md, as a script. TPM says which
# TPM the node has:
#
#	soft          the software TPM of this repository (nothing else is needed)
#	swtpm         swtpm, with an EK certificate of swtpm-localca
#	/dev/tpmrm0   this machine's; makers.pem in DIR holds its maker's certificates
#
# The first two boot what LOG says, the recording of a real boot.
. "$(dirname -- "$0")/common.sh"
PORT=${PORT:-8440}
TPM=${TPM:-soft}
LOG=${LOG:-$(cd "$here/../.." && pwd)/secureboot/testdata/vm/uki-sb-on/binary_bios_measurements}

say "a TPM: $TPM"
at=unix:$DIR/tpm.sock
case $TPM in
soft)
	cp "$LOG" event-log
	"$BIN/softtpm" -dir chip -socket tpm.sock -boot event-log &
	running="$running $!"
	until_true test -S tpm.sock
	cp chip/maker.pem makers.pem
	;;
swtpm)
	cp "$LOG" event-log
	mkdir chip ca
	printf 'statedir = %s/ca\nsigningkey = %s/ca/signkey.pem\nissuercert = %s/ca/issuercert.pem\ncertserial = %s/ca/certserial\n' "$DIR" "$DIR" "$DIR" "$DIR" >ca/ca.conf
	: >ca/ca.options
	printf 'create_certs_tool = %s\ncreate_certs_tool_config = %s/ca/ca.conf\ncreate_certs_tool_options = %s/ca/ca.options\n' "$(command -v swtpm_localca)" "$DIR" "$DIR" >ca/setup.conf
	swtpm_setup --tpm2 --tpmstate chip --config ca/setup.conf --create-ek-cert --lock-nvram --pcr-banks sha256 >swtpm.log 2>&1 || { cat swtpm.log >&2; exit 1; }
	swtpm socket --tpm2 --tpmstate dir=chip --server type=unixio,path=tpm.sock --flags not-need-init,startup-clear >>swtpm.log 2>&1 &
	running="$running $!"
	until_true test -S tpm.sock
	"$BIN/softtpm" -connect tpm.sock -boot event-log
	cat ca/swtpm-localca-rootca-cert.pem ca/issuercert.pem >makers.pem
	;;
*)
	at=$TPM
	cat /sys/kernel/security/tpm0/binary_bios_measurements >event-log
	;;
esac

say "a cloud, which takes TPMs of this maker, and boots like this one"
"$BIN/cloud" init -state city -domain city.example -host 127.0.0.1 \
	-enroll-port "$PORT" -gateway-port "$((PORT + 1))" -api-port "$((PORT + 2))"
cp makers.pem city/tpm-makers/
mkdir policies
"$BIN/cloud" boot -state city -log event-log -reference city/reference/1.0.0.json -pcr-policy policies/1.0.0.json
"$BIN/cloud" serve -state city -check
"$BIN/cloud" serve -state city -insecure-loopback-page "127.0.0.1:$((PORT + 3))" 2>cloud.log &
running="$running $!"
until_true grep -q cloud.ready cloud.log

say "a node"
cat /proc/sys/kernel/random/uuid >boot-id # a TPM in software starts anew without the machine
cat >node.json <<END
{
  "version": 1,
  "state": "$DIR/state", "run": "$DIR/run",
  "bootstrap": "$DIR/city/bootstrap.json",
  "tpm": "$at", "tpm_makers": "$DIR/makers.pem",
  "event_log": "$DIR/event-log", "boot_id": "$DIR/boot-id",
  "policies": "$DIR/policies", "flows": "$DIR/city/flows.json",
  "hardware": "streetlight-1", "channel": "stable", "image": "1.0.0",
  "streams": [{"name": "lamp", "every_seconds": 1}]
}
END
"$BIN/node" run -config node.json -check
"$BIN/node" run -config node.json 2>node.log &
running="$running $!"
link() { "$BIN/node" status -config node.json | grep -q "^$1  *ok"; }
until_true link "data volume"

say "a tenant, and which stream is its"
device=$("$BIN/node" status -config node.json | sed -n 's/^tpm .*device \([0-9a-f]*\).*/\1/p')
api() { curl -fsS --cacert city/ca.crt --cert city/operator.crt --key city/operator.key "$@"; }
api -X PUT "https://127.0.0.1:$((PORT + 2))/v1/admin/tenants/lighting"
cat >assignments.json <<END
{
  "version": 1, "store": "city.example", "serial": 2, "expires": "$(date -u -d '+30 days' +%Y-%m-%dT%H:%M:%SZ)",
  "grants": [
    {"subject": "spiffe://city.example/operator", "roles": ["control"]},
    {"subject": "spiffe://city.example/node/$device", "stream": "lamp", "tenant": "lighting", "roles": ["ingest"]},
    {"subject": "spiffe://city.example/tenant/lighting", "tenant": "lighting", "roles": ["read"]}
  ]
}
END
"$BIN/cloud" assign -state city -in assignments.json >signed.json
api -T signed.json "https://127.0.0.1:$((PORT + 2))/v1/admin/assignments"
"$BIN/cloud" issue -state city -name tenant/lighting
until_true link "telemetry lamp"
curl -fsS --cacert city/ca.crt --cert city/issued-lighting.crt --key city/issued-lighting.key \
	"https://127.0.0.1:$((PORT + 2))/v1/records?stream=lamp" >records.json
grep -q '"value"' records.json

say "its tree of trust; the page is at http://127.0.0.1:$((PORT + 3))/"
"$BIN/node" status -config node.json
if [ -n "${KEEP:-}" ]; then
	echo "Ctrl-C ends it; everything is in $DIR"
	wait
fi
