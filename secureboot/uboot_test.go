package secureboot_test

import (
	"crypto"
	"os"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/eventlog"
	"github.com/trusttree/trusttree/secureboot/internal/logtest"
)

// uboot is the log of an ARM board as U-Boot writes it when it measures a boot
// (boot/bootm.c bm_measure, lib/tpm_tcg2.c), after events that the earlier
// stage (TF-A) handed over. There is no UEFI Secure Boot in it.
func uboot(kernel, initrd, dtb, bootargs string, banks ...crypto.Hash) secureboot.Evidence {
	tagged := func(pcr uint32, typ eventlog.Type, name, content string) logtest.Event {
		e := logtest.Measured(pcr, typ, []byte(content), banks...)
		e.Data = append([]byte(name), 0) // content hash: the name is unbound
		return e
	}
	events := []logtest.Event{
		tagged(0, eventlog.EvPostCode, "BL_2", "trusted boot firmware"),
		tagged(0, eventlog.EvPostCode, "SECURE_RT_EL3", "EL3 monitor"),
		logtest.Measured(0, eventlog.EvSCRTMVersion, []byte("U-Boot 2024.01\x00"), banks...),
		tagged(0, eventlog.EvTableOfDevices, "dts", dtb),
		tagged(8, eventlog.EvCompactHash, "linux", kernel),
		tagged(9, eventlog.EvCompactHash, "initrd", initrd),
		tagged(1, eventlog.EvPlatformConfigFlags, "bootargs", bootargs),
	}
	for pcr := range uint32(8) {
		events = append(events, logtest.Measured(pcr, eventlog.EvSeparator, make([]byte, 4), banks...))
	}
	return secureboot.Evidence{Bank: crypto.SHA256, PCRs: logtest.Values(crypto.SHA256, events), EventLog: logtest.Join(logtest.Header(banks...), events)}
}

func TestUBootMeasuredBoot(t *testing.T) {
	good := uboot("linux", "initrd", "board.dtb", "root=/dev/mmcblk0p2", crypto.SHA256)
	_, err := secureboot.Learn(secureboot.LearnOptions{NotAfter: nextYear}, good)
	require.ErrorContains(t, err, "Secure Boot", "it must be said that there is none")
	p, err := secureboot.Learn(secureboot.LearnOptions{Name: "arm", NotAfter: nextYear, InsecureNoSB: true, Replay: []int{13}, Ignore: []int{15, 16, 23}}, good)
	require.NoError(t, err)
	r := p.Appraise(good, now)
	assert.Equal(t, secureboot.Affirming, r.Status, "%v", r.Findings)
	assert.False(t, r.Enforcing)
	assert.Equal(t, secureboot.No, r.SecureBoot.Enabled)
	for name, ev := range map[string]secureboot.Evidence{
		"kernel":   uboot("evil", "initrd", "board.dtb", "root=/dev/mmcblk0p2", crypto.SHA256),
		"initrd":   uboot("linux", "evil", "board.dtb", "root=/dev/mmcblk0p2", crypto.SHA256),
		"dtb":      uboot("linux", "initrd", "evil", "root=/dev/mmcblk0p2", crypto.SHA256),
		"bootargs": uboot("linux", "initrd", "board.dtb", "init=/bin/sh", crypto.SHA256),
	} {
		assert.Equal(t, []secureboot.Code{secureboot.CodePCRReference}, codes(p.Appraise(ev, now)), name)
	}
}

// TestHandedOverLogLacksTheBank: a stage without a TPM driver logged in fewer
// banks than the TPM has.
func TestHandedOverLogLacksTheBank(t *testing.T) {
	good := uboot("linux", "initrd", "board.dtb", "", crypto.SHA256)
	p, err := secureboot.Learn(secureboot.LearnOptions{Name: "arm", NotAfter: nextYear, InsecureNoSB: true}, good)
	require.NoError(t, err)
	ev := uboot("linux", "initrd", "board.dtb", "", crypto.SHA1)
	ev.PCRs = good.PCRs
	r := p.Appraise(ev, now)
	assert.Equal(t, []secureboot.Code{secureboot.CodeEvidenceMalformed}, codes(r))
	assert.Contains(t, r.Err().Error(), "no digests of this bank")
}

// TestEventsNeverExtendedAreFound: a handed-over log whose events nobody
// extended into the TPM.
func TestEventsNeverExtendedAreFound(t *testing.T) {
	good := uboot("linux", "initrd", "board.dtb", "", crypto.SHA256)
	p, err := secureboot.Learn(secureboot.LearnOptions{Name: "arm", NotAfter: nextYear, InsecureNoSB: true}, good)
	require.NoError(t, err)
	ev := good
	_, events := logtest.Split(good.EventLog)
	ev.PCRs = logtest.Values(crypto.SHA256, events[2:])
	r := p.Appraise(ev, now)
	assert.Equal(t, []secureboot.Code{secureboot.CodePCRMismatch}, codes(r))
}

// recordedUBoot is a boot by Debian's U-Boot on an emulated ARM board with a
// TPM; testdata/uboot/README.md says how it was made.
func recordedUBoot(t *testing.T) secureboot.Evidence {
	t.Helper()
	const dir = "testdata/uboot/qemu-arm64/"
	log, err := os.ReadFile(dir + "binary_bios_measurements")
	require.NoError(t, err)
	pcrs, err := os.ReadFile(dir + "pcrs.txt")
	require.NoError(t, err)
	ev := secureboot.Evidence{Bank: crypto.SHA256, EventLog: log, PCRs: pcrsOf(t, pcrs, crypto.SHA256)}
	quoted, err := os.ReadFile(dir + "quote_sha256.tpms_attest")
	require.NoError(t, err)
	att, err := tpm2.Unmarshal[tpm2.TPMSAttest](quoted)
	require.NoError(t, err)
	info, err := att.Attested.Quote()
	require.NoError(t, err)
	h := crypto.SHA256.New()
	for pcr := range 24 {
		h.Write(ev.PCRs[pcr])
	}
	require.Equal(t, h.Sum(nil), info.PCRDigest.Buffer, "the TPM quoted these values")
	return ev
}

// TestRecordedUBootBoot: the TPM of a board that U-Boot booted confirms its log,
// and another image is refused.
func TestRecordedUBootBoot(t *testing.T) {
	ev := recordedUBoot(t)
	_, err := secureboot.Learn(secureboot.LearnOptions{NotAfter: nextYear}, ev)
	require.ErrorContains(t, err, "Secure Boot")
	p, err := secureboot.Learn(secureboot.LearnOptions{Name: "board", NotAfter: nextYear, InsecureNoSB: true}, ev)
	require.NoError(t, err)
	r := p.Appraise(ev, now)
	assert.Equal(t, secureboot.Affirming, r.Status, "%v", r.Findings)
	assert.Equal(t, secureboot.No, r.SecureBoot.Enabled)
	assert.Equal(t, secureboot.ModeSetup, r.SecureBoot.Mode)
	assert.False(t, r.Enforcing)
	require.Len(t, r.SecureBoot.Images, 1)
	assert.True(t, r.SecureBoot.Images[0].PreOS, "U-Boot measures the image before the separator")

	header, events := logtest.Split(ev.EventLog)
	for name, c := range map[string]struct {
		pcr uint32
		typ eventlog.Type
	}{"image": {4, eventlog.EvEFIBootServicesApp}, "U-Boot's version": {0, eventlog.EvSCRTMVersion}, "command line": {9, eventlog.EvEventTag}, "keys": {7, eventlog.EvEFIVariableDriverConfig}} {
		es := slices.Clone(events)
		es[find(es, c.pcr, c.typ)] = logtest.Measured(c.pcr, c.typ, []byte("evil"), banks...)
		bad := ev
		bad.EventLog, bad.PCRs = logtest.Join(header, es), logtest.Values(crypto.SHA256, es)
		assert.Equal(t, secureboot.Contraindicated, p.Appraise(bad, now).Status, name)
	}
}
