#!/bin/sh
# A release, signed by two root keys, a targets key and an online key, and a
# client that takes it and nothing else. Needs Go alone.
. "$(dirname -- "$0")/common.sh"
PORT=${PORT:-8440}
publish() { "$BIN/publish" "$@"; }
at="http://127.0.0.1:$PORT"
client() { "$BIN/tufclient" --metadata-dir trusted --metadata-url "$at/metadata/" "$@"; }

say "keys: root1, root2 and targets stay offline"
for k in root1 root2 targets online; do publish key -out $k.pem; done

say "a repository"
publish init -repo repo -root root1.pem.pub,root2.pem.pub -root-threshold 2 -targets targets.pem.pub -online online.pem.pub \
	-key root1.pem -key root2.pem -key targets.pem -key online.pem
publish root -repo repo -out root.json

say "a release: refused without the targets key"
echo 'an image' >image
release() { publish release -repo repo -channel stable -name os-2.0 -version 2.0 -security 5 -hardware streetlight-1 -part rootfs=image "$@"; }
want 3 release -key online.pem
release -key online.pem -key targets.pem

say "its rollout, as a ceremony: the targets key signs on a machine without the repository"
publish rollout -repo repo -channel stable -name os-2.0 -wave now=1000 -propose
publish payload -repo repo -role targets -out payload
publish sign -key targets.pem -in payload -out signature
publish signature -repo repo -role targets -pub targets.pem.pub -in signature
publish publish-draft -repo repo -key online.pem
publish check -repo repo

say "a client that was given root.json"
mkdir trusted downloaded
"$BIN/webserver" -dir repo -listen "127.0.0.1:$PORT" &
running="$running $!"
"$BIN/tufclient" --metadata-dir trusted init root.json
until_true client refresh
fetch() { client --target-name parts/stable/os-2.0/rootfs --target-base-url "$at/targets/" --target-dir downloaded download; }
fetch
cmp image downloaded/parts%2Fstable%2Fos-2.0%2Frootfs

say "the same, from a mirror that was broken into"
rm downloaded/*
for f in repo/targets/parts/stable/os-2.0/*.rootfs; do echo 'another.' >"$f"; done
want 1 fetch
[ -z "$(ls downloaded)" ]
