#!/bin/bash
# deb.sh OUT [ARCH...]: builds the Debian packages trusttree-node and
# trusttree-cloud (amd64, arm64, armhf), without cgo. The same commit and Go
# version give the same bytes.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: deploy/deb.sh OUT [ARCH...]}
shift
[ $# -gt 0 ] || set -- amd64 arm64 armhf
mkdir -p "$out"
out=$(cd "$out" && pwd)
version=$(git describe --tags --match 'v*' 2>/dev/null | sed 's/^v//; s/-/+/g' || true)
[ -n "$version" ] || version="0.0.0+$(git rev-parse --short=12 HEAD)"
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH CGO_ENABLED=0 GOOS=linux
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# install_tree NAME ROOT: what the package puts on the machine beside its binary.
install_tree() {
	install -d "$2/lib/systemd/system" "$2/usr/share/doc/trusttree-$1"
	install -m 644 LICENSE "$2/usr/share/doc/trusttree-$1/copyright"
	install -m 644 "deploy/systemd/trusttree-$1.service" "$2/lib/systemd/system/"
	case $1 in
	node)
		install -m 644 deploy/systemd/trusttree-sensors.socket "$2/lib/systemd/system/"
		install -d "$2/etc/trusttree" "$2/usr/lib/sysusers.d"
		printf '%s\n' 'u trusttree - "trusttree node" /var/lib/trusttree' 'g trusttree-sensors -' 'g i2c -' 'g gpio -' 'g tss -' \
			>"$2/usr/lib/sysusers.d/trusttree-node.conf"
		;;
	cloud)
		install -d "$2/usr/lib/sysusers.d"
		printf '%s\n' 'u trusttree-cloud - "trusttree cloud" /var/lib/trusttree-cloud' >"$2/usr/lib/sysusers.d/trusttree-cloud.conf"
		;;
	esac
}

for arch in "$@"; do
	case $arch in
	amd64) export GOARCH=amd64 ;;
	arm64) export GOARCH=arm64 ;;
	armhf) export GOARCH=arm GOARM=7 ;;
	*) echo "architecture $arch is none of amd64, arm64, armhf" >&2; exit 2 ;;
	esac
	for name in node cloud; do
		root="$work/$arch-$name"
		install -d "$root/usr/bin" "$root/DEBIAN"
		go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$root/usr/bin/trusttree-$name" "./examples/$name"
		install_tree "$name" "$root"
		size=$(du -k -s "$root" | cut -f1)
		cat >"$root/DEBIAN/control" <<-EOF
			Package: trusttree-$name
			Version: $version
			Architecture: $arch
			Maintainer: trusttree <security@trusttree.example>
			Installed-Size: $size
			Depends: systemd
			Section: admin
			Priority: optional
			Homepage: https://github.com/trusttree/trusttree
			Description: trusttree reference $name
			 The $name of the reference fleet: see docs/quickstart.md.
		EOF
		cat >"$root/DEBIAN/postinst" <<-EOF
			#!/bin/sh
			set -e
			systemd-sysusers trusttree-$name.conf || true
			systemctl daemon-reload >/dev/null 2>&1 || true
		EOF
		chmod 755 "$root/DEBIAN/postinst"
		find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
		dpkg-deb --root-owner-group -Zxz --build "$root" "$out/trusttree-${name}_${version}_$arch.deb" >/dev/null
	done
done
(cd "$out" && sha256sum ./*.deb)
