#!/bin/sh
# Says which parts of this machine the library can work with. It reads; it
# changes nothing but a directory below DIR, which it removes again, and, where
# you name an I2C bus, it wakes the chips there.
#
#	sh docs/hardware-check.sh [-i /dev/i2c-N [-a 0x60,0x61] [-r roots.pem]] [-d DIR]
#
#	-i  I2C bus with ATECC chips, -a their addresses, -r the CA that certified them
#	-d  directory of the file system whose encryption is tried
#
# Run it as root; what it may not read it says. BIN names the directory with the
# commands bootcheck, modulescan and volume; else they are looked for in PATH.
# Each line begins with "met", "not met" or "not asked". Nothing printed is
# secret. Exit codes: 0 done, 2 usage.
set -u
bus='' addr=0x60 roots='' dir=''
while getopts i:a:r:d: o; do
	case $o in
	i) bus=$OPTARG ;;
	a) addr=$OPTARG ;;
	r) roots=$OPTARG ;;
	d) dir=$OPTARG ;;
	*) exit 2 ;;
	esac
done
[ -n "${BIN:-}" ] && PATH=$BIN:$PATH
sys=${SYSROOT:-}/sys # SYSROOT is for tests
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

met() { printf 'met        %-18s %s\n' "$1" "$2"; }
unmet() { printf 'not met    %-18s %s\n' "$1" "$2"; }
unasked() { printf 'not asked  %-18s %s\n' "$1" "$2"; }
have() { command -v "$1" >/dev/null 2>&1; }
first() { head -n 1 "$1" 2>/dev/null | tr -d '\0'; }

echo "# machine"
echo "$(uname -srm); $(first "$sys/class/dmi/id/sys_vendor") $(first "$sys/class/dmi/id/product_name") $(first /proc/device-tree/model)"
echo "firmware $(first "$sys/class/dmi/id/bios_vendor") $(first "$sys/class/dmi/id/bios_version")"

echo "# TPM"
tpm=$sys/class/tpm/tpm0
case $(first "$tpm/tpm_version_major") in
2) met "TPM 2.0" "$(first "$tpm/device/description") $(first "$tpm/device/modalias")" ;;
'') unmet "TPM 2.0" "the kernel shows no TPM in $tpm" ;;
*) unmet "TPM 2.0" "this is a TPM 1.2" ;;
esac
if [ -r /dev/tpmrm0 ] && [ -w /dev/tpmrm0 ]; then
	met "resource manager" /dev/tpmrm0
else
	unmet "resource manager" "/dev/tpmrm0 is not there, or this user may not open it"
fi
: >"$tmp/pcrs.txt"
for b in sha256 sha384 sha1; do
	[ -d "$tpm/pcr-$b" ] || { unmet "bank $b" "not active, or a kernel before 5.12"; continue; }
	i=0
	while [ $i -lt 24 ]; do
		echo "$b $i $(first "$tpm/pcr-$b/$i")" >>"$tmp/pcrs.txt"
		i=$((i + 1))
	done
	met "bank $b" "PCR 0 is $(first "$tpm/pcr-$b/0")"
done
if have tpm2_getcap && [ -r /dev/tpmrm0 ]; then
	maker=$(tpm2_getcap -T device:/dev/tpmrm0 properties-fixed 2>/dev/null | awk '
		/^TPM2_PT/ { if (want) printf "%s ", v; want = ($0 ~ /MANUFACTURER|VENDOR_STRING_1|FIRMWARE_VERSION_1/) }
		/raw|value/ { v = $2 }
		END { if (want) print v }')
	met "TPM maker" "$maker"
	nv=$(tpm2_getcap -T device:/dev/tpmrm0 handles-nv-index 2>/dev/null | grep -i '0x1C000' | tr -d '\n-')
	if [ -n "$nv" ]; then met "EK certificates" "NV indices$nv"; else unmet "EK certificates" "none in NV: get them from the maker"; fi
else
	unasked "TPM maker" "tpm2_getcap (tpm2-tools) is not installed, or there is no TPM"
fi

echo "# boot"
log=$sys/kernel/security/tpm0/binary_bios_measurements
if [ ! -r "$log" ]; then
	unmet "event log" "$log can't be read"
elif ! have bootcheck; then
	unasked "event log" "bootcheck is not in BIN or PATH"
else
	for b in sha256 sha384; do
		grep -q "^$b " "$tmp/pcrs.txt" || continue
		code=0
		set -- -bank $b -log "$log" -pcrs "$tmp/pcrs.txt"
		ima=$sys/kernel/security/ima/binary_runtime_measurements
		[ -r "$ima" ] && set -- "$@" -ima "$ima"
		bootcheck "$@" >"$tmp/boot.txt" 2>&1 || code=$?
		case $code in
		0 | 1) met "event log $b" "it explains the PCRs (no reference values were asked)" ;;
		2) unmet "event log $b" "it does not explain the PCRs:" && cat "$tmp/boot.txt" ;;
		*) unmet "event log $b" "$(head -n 1 "$tmp/boot.txt")" ;;
		esac
	done
fi
vars=$sys/firmware/efi/efivars
guid=8be4df61-93ca-11d2-aa0d-00e098032b8c
if [ -d "$vars" ]; then
	met "EFI variables" "$(find "$vars" -maxdepth 1 -name 'Boot[0-9A-F]*' | wc -l | tr -d ' ') boot entries"
	for v in SecureBoot SetupMode; do
		value=$(od -An -tu1 -j4 -N1 "$vars/$v-$guid" 2>/dev/null | tr -d ' ')
		case $v$value in
		SecureBoot1) met "Secure Boot" enabled ;;
		SecureBoot*) unmet "Secure Boot" "SecureBoot is ${value:-absent}" ;;
		SetupMode0) met "user mode" "keys are enrolled" ;;
		SetupMode*) unmet "user mode" "SetupMode is ${value:-absent}" ;;
		esac
	done
else
	unmet "EFI variables" "no UEFI, or efivarfs is not mounted"
fi
if have fw_printenv; then
	if fw_printenv -n bootcount >/dev/null 2>&1; then met "U-Boot bootcount" "$(fw_printenv -n bootcount)"; else unmet "U-Boot bootcount" "fw_printenv knows no bootcount"; fi
else
	unasked "U-Boot variables" "fw_printenv is not installed"
fi

echo "# modules"
if [ -z "$bus" ]; then
	unasked "crypto chips" "name a bus with -i; there are: $(find /dev -maxdepth 1 -name 'i2c-*' 2>/dev/null | sort | tr '\n' ' ')"
elif ! have modulescan; then
	unasked "crypto chips" "modulescan is not in BIN or PATH"
else
	code=0
	set -- -i2c "$bus" -addr "$addr"
	[ -n "$roots" ] && set -- "$@" -root "$roots"
	modulescan "$@" >"$tmp/scan.txt" 2>&1 || code=$?
	case $code in
	0) met "crypto chips" "all answered and are authenticated" ;;
	3) met "crypto chips" "see RESULT: without -r, or with another CA, nothing is authenticated" ;;
	*) unmet "crypto chips" "modulescan ended with $code" ;;
	esac
	cat "$tmp/scan.txt"
fi
if [ -e /dev/gpiochip0 ]; then met "GPIO" "$(find /dev -maxdepth 1 -name 'gpiochip*' | wc -l | tr -d ' ') chips"; else unmet "GPIO" "no /dev/gpiochip0"; fi
if grep -q '^MCTP' /proc/net/protocols 2>/dev/null; then met "MCTP sockets" "AF_MCTP"; else unmet "MCTP sockets" "the kernel has none loaded"; fi

echo "# storage"
for f in "$sys"/fs/ext4/features/encryption "$sys"/fs/f2fs/features/encryption; do
	[ -e "$f" ] && met "kernel encryption" "$(first "$f"): ${f#"$sys"/fs/}"
done
if [ -z "$dir" ]; then
	unasked "file encryption" "name a directory with -d"
elif ! have volume; then
	unasked "file encryption" "volume is not in BIN or PATH"
else
	probe=$(mktemp -d "$dir/hardware-check.XXXXXX") || exit 1
	trap 'rm -rf "$tmp" "$probe"' EXIT
	head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$tmp/pass"
	fs=$(df -PT "$dir" 2>/dev/null | awk 'NR == 2 { print $2 }')
	if volume create -kernel -dir "$probe/v" -label probe -passphrase-file "$tmp/pass" -work-factor 10 -unsafe-no-freshness >"$tmp/vol.txt" 2>&1; then
		met "file encryption" "$fs: $(grep '^directory' "$tmp/vol.txt" | sed 's/.*, \(.* and .*\), key.*/\1/')"
		volume lock -dir "$probe/v" >/dev/null 2>&1
	else
		unmet "file encryption" "$fs: $(head -n 1 "$tmp/vol.txt")"
	fi
	if volume create -dir "$probe/p" -label probe -passphrase-file "$tmp/pass" -work-factor 10 -unsafe-no-freshness >"$tmp/vol.txt" 2>&1; then
		met "portable volumes" "$fs"
	else
		unmet "portable volumes" "$fs: $(head -n 1 "$tmp/vol.txt")"
	fi
fi

echo "# confinement"
if grep -q landlock "$sys/kernel/security/lsm" 2>/dev/null; then met Landlock "$(first "$sys/kernel/security/lsm")"; else unmet Landlock "not among the kernel's security modules"; fi
