#!/bin/bash
# Full figures of tlsconn: 10,000 streams under reloads, fuzzing, and the relays
# of other vendors beside ours (stunnel4, haproxy, nginx-light, nftables, tcpdump).
set -eu
cd "$(dirname "$0")/../.."
export TRUSTTREE_LONG=1
go test -race -count=1 -timeout 20m ./tlsconn ./tlsconn/mud ./tlsconn/confine
for target in FuzzParseID FuzzTarget FuzzPolicy FuzzFrames FuzzCRL; do
	go test -run xxx -fuzz "^$target\$" -fuzztime 60s ./tlsconn
done
go test -run xxx -fuzz '^FuzzImport$' -fuzztime 60s ./tlsconn/mud
go test -run xxx -bench . -benchmem ./tlsconn
go test -count=1 -timeout 60m -v -run '^TestBesidePeers$' ./tlsconn/internal/interop | grep -E 'peers_test|^(---|ok|FAIL)'
