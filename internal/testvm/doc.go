// Package testvm boots a real UEFI machine with Secure Boot and a TPM 2.0 for
// tests: QEMU in software emulation, OVMF, swtpm, and a unified kernel image
// made of Debian's cloud kernel and a PID 1 of our own (package init below).
// A boot brings back its event log, IMA log, PCRs and quotes, and carries out
// small tasks with its TPM (seal, unseal).
//
// A Board is such a machine built as a node: software slots that the firmware
// boots, a state disk, a network, and the node's binary under a PID 1 of its own
// (package nodeinit below).
//
// The TPM, the firmware's variables and the disk keep their state from boot to
// boot. A boot that does not end with PID 1's result line has failed.
//
// Debian packages: qemu-system-x86 ovmf swtpm swtpm-tools sbsigntool mtools
// dosfstools gdisk e2fsprogs binutils systemd-boot-efi busybox-static. The
// kernel package is downloaded and unpacked into a cache directory, not
// installed.
package testvm
