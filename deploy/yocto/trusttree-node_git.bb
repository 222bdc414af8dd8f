SUMMARY = "trusttree reference node"
HOMEPAGE = "https://github.com/trusttree/trusttree"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://src/${GO_IMPORT}/LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

# Pin SRCREV to a release, and the modules with it: "go mod vendor" in the
# fetched tree, or a module proxy of your own (GOPROXY); the build itself
# needs no network and no cgo.
SRC_URI = "git://github.com/trusttree/trusttree;protocol=https;branch=main;destsuffix=${GO_SRCURI_DESTSUFFIX}"
SRCREV = "${AUTOREV}"
PV = "0.0+git"

GO_IMPORT = "github.com/trusttree/trusttree"
GO_INSTALL = "${GO_IMPORT}/examples/node"
CGO_ENABLED = "0"
GO_LINKSHARED = ""
GOBUILDFLAGS:append = " -trimpath -buildvcs=false"
GO_EXTRA_LDFLAGS = "-s -w"

inherit go-mod systemd useradd

USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system trusttree-sensors; --system i2c; --system gpio; --system tss"
USERADD_PARAM:${PN} = "--system --home-dir /var/lib/trusttree --shell /sbin/nologin --user-group trusttree"

SYSTEMD_SERVICE:${PN} = "trusttree-node.service trusttree-sensors.socket"

do_install:append() {
    mv ${D}${bindir}/node ${D}${bindir}/trusttree-node
    install -d ${D}${systemd_system_unitdir} ${D}${sysconfdir}/trusttree
    install -m 0644 ${S}/src/${GO_IMPORT}/deploy/systemd/trusttree-node.service ${D}${systemd_system_unitdir}/
    install -m 0644 ${S}/src/${GO_IMPORT}/deploy/systemd/trusttree-sensors.socket ${D}${systemd_system_unitdir}/
}

FILES:${PN} += "${systemd_system_unitdir} ${sysconfdir}/trusttree"
