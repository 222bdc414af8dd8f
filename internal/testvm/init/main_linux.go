// init is PID 1 of the test machine: it mounts the pseudo file systems, lets
// IMA measure some files, brings back logs, PCRs and a quote, carries out its
// tasks, and switches the machine off.
//
// Its input is a tar on the third disk: nonce.bin, and for tasks
//
//	seal.policy, seal.secret   seal the secret under this policy digest (32 bytes)
//	unseal.blob, unseal.pcrs   unseal under a signed PCR policy (systemd's JSON)
//	unseal.key                 the policy key (SPKI, DER)
//	bare                       the machine has no data partition: measure no files
//
// Its output is a tar on the second disk. result.txt says "ok" and the nonce,
// or what went wrong.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"

	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/secureboot/bootpolicy"

	"github.com/trusttree/trusttree/internal/testvm/vminit"
	"github.com/trusttree/trusttree/internal/testvm/vmtar"
)

func main() {
	out := make(map[string][]byte)
	if err := work(out); err != nil {
		out["result.txt"] = []byte(err.Error() + "\n")
	}
	fmt.Printf("INIT: %s", out["result.txt"])
	if err := flush(out); err != nil {
		fmt.Printf("INIT: write results: %v\n", err)
	}
	syscall.Sync()
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

func work(out map[string][]byte) error {
	if err := vminit.Mount(); err != nil {
		return err
	}
	for i := 0; ; i++ {
		if _, err := os.Stat("/dev/nvme2n1"); err == nil {
			break
		} else if i == 500 {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	in, err := input()
	if err != nil {
		return fmt.Errorf("input: %w", err)
	}
	if err := vminit.LoadModules(); err != nil {
		return err
	}
	if in["bare"] == nil {
		if err := exercise(); err != nil {
			return err
		}
	}
	for name, path := range map[string]string{"binary_bios_measurements": "tpm0/binary_bios_measurements", "ima_binary_runtime_measurements": "ima/binary_runtime_measurements"} {
		if out[name], err = os.ReadFile("/sys/kernel/security/" + path); err != nil {
			return err
		}
	}
	t, err := linuxtpm.Open("/dev/tpmrm0")
	if err != nil {
		return err
	}
	defer t.Close()
	if err := quote(t, in["nonce.bin"], out); err != nil {
		return fmt.Errorf("quote: %w", err)
	}
	if err := tasks(t, in, out); err != nil {
		return err
	}
	if b, err := os.ReadFile("/proc/cmdline"); err == nil {
		out["cmdline.txt"] = b
	}
	out["nonce.bin"] = in["nonce.bin"]
	out["result.txt"] = []byte("ok " + hex.EncodeToString(in["nonce.bin"]) + "\n")
	return nil
}

func input() (map[string][]byte, error) { return vmtar.Read("/dev/nvme2n1") }

// exercise lets IMA measure what is run and read.
func exercise() error {
	_ = os.MkdirAll("/data", 0o755)
	if err := syscall.Mount("/dev/nvme0n1p2", "/data", "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount /data: %w", err)
	}
	for _, name := range []string{"busybox", "selftest.sh"} {
		if out, err := exec.Command("/data/bin/"+name, "true").CombinedOutput(); err != nil {
			return fmt.Errorf("run %s: %w: %s", name, err, out)
		}
	}
	for _, name := range []string{"config", "role"} {
		if _, err := os.ReadFile(filepath.Join("/data/etc", name)); err != nil {
			return err
		}
	}
	return nil
}

// quote signs all PCRs of the SHA-256 bank with a fresh, restricted key.
func quote(t transport.TPM, nonce []byte, out map[string][]byte) (err error) {
	ak, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})}})})}.Execute(t)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tpm.Flush(t, ak.ObjectHandle)) }()
	q, err := tpm2.Quote{SignHandle: tpm2.AuthHandle{Handle: ak.ObjectHandle, Name: ak.Name, Auth: tpm2.PasswordAuth(nil)},
		QualifyingData: tpm2.TPM2BData{Buffer: nonce}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: []byte{0xFF, 0xFF, 0xFF}}}}}.Execute(t)
	if err != nil {
		return err
	}
	out["ak_pub.tpm2b"] = tpm2.Marshal(ak.OutPublic)
	out["quote_sha256.tpms_attest"] = tpm2.Marshal(q.Quoted)[2:]
	out["quote_sha256.tpmt_signature"] = tpm2.Marshal(q.Signature)
	var b bytes.Buffer
	for pcr := range 24 {
		v, err := os.ReadFile(fmt.Sprintf("/sys/class/tpm/tpm0/pcr-sha256/%d", pcr))
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "sha256 %d %s\n", pcr, strings.ToLower(strings.TrimSpace(string(v))))
	}
	out["pcrs.txt"] = b.Bytes()
	return nil
}

func tasks(t transport.TPM, in, out map[string][]byte) error {
	if p := in["seal.policy"]; p != nil {
		if err := seal(t, p, in["seal.secret"], out); err != nil {
			return fmt.Errorf("seal: %w", err)
		}
	}
	if b := in["unseal.blob"]; b != nil {
		if err := unseal(t, in, out); errors.Is(err, bootpolicy.ErrNotSatisfied) {
			out["unseal.refused"] = []byte(err.Error())
		} else if err != nil {
			return fmt.Errorf("unseal: %w", err)
		}
	}
	return nil
}

func seal(t transport.TPM, policy, secret []byte, out map[string][]byte) (err error) {
	srk, err := tpm.SRK(t, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srk.Flush()) }()
	rsp, err := tpm2.Create{ParentHandle: srk.Auth(srk.Session(tpm.EncryptIn())),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret})}},
		InPublic: tpm2.New2B(tpm2.TPMTPublic{Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true}, AuthPolicy: tpm2.TPM2BDigest{Buffer: policy}})}.Execute(t)
	if err != nil {
		return err
	}
	out["sealed.blob"] = slices.Concat(tpm2.Marshal(rsp.OutPublic), tpm2.Marshal(rsp.OutPrivate))
	return nil
}

func unseal(t transport.TPM, in, out map[string][]byte) (err error) {
	key, err := x509.ParsePKIXPublicKey(in["unseal.key"])
	if err != nil {
		return err
	}
	policy, err := bootpolicy.Signed(key, in["unseal.pcrs"])
	if err != nil {
		return err
	}
	blob := in["unseal.blob"]
	n := 2 + int(blob[0])<<8 + int(blob[1])
	pub, err := tpm2.Unmarshal[tpm2.TPM2BPublic](blob[:n])
	if err != nil {
		return err
	}
	priv, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](blob[n:])
	if err != nil {
		return err
	}
	srk, err := tpm.SRK(t, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srk.Flush()) }()
	obj, err := tpm2.Load{ParentHandle: srk.Auth(nil), InPrivate: *priv, InPublic: *pub}.Execute(t)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tpm.Flush(t, obj.ObjectHandle)) }()
	s, closer, err := srk.PolicySession(t, tpm.EncryptOut())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closer()) }()
	if err := policy.Satisfy(t, s.Handle(), s.NonceTPM()); err != nil {
		return err
	}
	rsp, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: obj.ObjectHandle, Name: obj.Name, Auth: s}}.Execute(t)
	if err != nil {
		return err
	}
	out["unsealed.secret"] = rsp.OutData.Buffer
	return nil
}

func flush(files map[string][]byte) error {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for n, data := range files {
		if err := w.WriteHeader(&tar.Header{Name: n, Mode: 0o600, Size: int64(len(data))}); err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	d, err := os.OpenFile("/dev/nvme1n1", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	if _, err := d.Write(b.Bytes()); err != nil {
		return err
	}
	return d.Sync()
}
