// Package tpmtest starts TPMs for tests and demonstrations: swtpm processes,
// or TPMs of internal/softtpm in this process, that hold EK certificates of a
// manufacturer made for the occasion, that can be rebooted, and whose bus can
// be recorded. They protect nothing.
package tpmtest

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/internal/softtpm"
	"github.com/trusttree/trusttree/internal/tpm"
)

// InstallHint says how to get swtpm.
const InstallHint = "install swtpm: apt-get install swtpm swtpm-tools"

// Maker is a TPM manufacturer: a certificate authority under whose root the
// EK certificates of its TPMs are.
type Maker struct {
	Root *x509.Certificate // what a verifier pins
	// Intermediates are the issuers between Root and the EK certificates.
	Intermediates []*x509.Certificate
	dir           string
	soft          *softtpm.Maker // of TPMs in this process
}

// NewMaker makes a manufacturer whose keys are kept below dir.
func NewMaker(dir string) (*Maker, error) {
	if _, err := exec.LookPath("swtpm_setup"); err != nil {
		return nil, fmt.Errorf("tpmtest: %w; %s", err, InstallHint)
	}
	ca := filepath.Join(dir, "ca")
	if err := os.MkdirAll(ca, 0o700); err != nil {
		return nil, err
	}
	files := map[string]string{
		"setup.conf":   "create_certs_tool=/usr/bin/swtpm_localca\ncreate_certs_tool_config=" + dir + "/localca.conf\ncreate_certs_tool_options=" + dir + "/localca.options\nactive_pcr_banks=sha1,sha256,sha384\n",
		"localca.conf": "statedir=" + ca + "\nsigningkey=" + ca + "/signkey.pem\nissuercert=" + ca + "/issuercert.pem\ncertserial=" + ca + "/certserial\n",
		"localca.options": "--tpm-manufacturer id:00001014\n--tpm-model swtpm\n--tpm-version id:00010000\n" +
			"--platform-manufacturer trusttree\n--platform-version 1\n--platform-model test\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	m := &Maker{dir: dir}
	if err := m.setup(filepath.Join(dir, "first")); err != nil { // the first TPM makes the CA
		return nil, err
	}
	var err error
	if m.Root, err = readCert(filepath.Join(ca, "swtpm-localca-rootca-cert.pem")); err != nil {
		return nil, err
	}
	issuer, err := readCert(filepath.Join(ca, "issuercert.pem"))
	if err != nil {
		return nil, err
	}
	m.Intermediates = []*x509.Certificate{issuer}
	return m, nil
}

func (m *Maker) setup(state string) error {
	if err := os.MkdirAll(state, 0o700); err != nil {
		return err
	}
	out, err := exec.Command("swtpm_setup", "--tpm2", "--tpmstate", state, "--config", filepath.Join(m.dir, "setup.conf"),
		"--create-ek-cert", "--create-platform-cert", "--lock-nvram", "--pcr-banks", "sha1,sha256,sha384", "--overwrite").CombinedOutput()
	if err != nil {
		return fmt.Errorf("tpmtest: swtpm_setup: %w: %s", err, out)
	}
	return nil
}

// TPM is a running swtpm or softtpm. Its Device may be shared.
type TPM struct {
	*tpm.Device
	// Socket is the unix socket on which it serves TPM commands to one client
	// at a time; the Device is that client until Detach. A TPM in this process
	// has none.
	Socket string

	state string
	cmd   *exec.Cmd
	soft  *softtpm.TPM // in this process; nil for a swtpm
}

// NewTPM makes a new TPM with RSA-2048 and P-384 EK certificates and starts
// it. Its state lives in a directory below the Maker's. A Maker of NewSoftMaker
// makes TPMs in this process, with RSA-2048, P-256 and P-384 EK certificates.
func (m *Maker) NewTPM(ctx context.Context) (*TPM, error) {
	if m.soft != nil {
		return m.newSoft(ctx)
	}
	state, err := os.MkdirTemp(m.dir, "tpm")
	if err != nil {
		return nil, err
	}
	if err := m.setup(state); err != nil {
		return nil, err
	}
	return Start(ctx, state)
}

// Start powers up the TPM whose state is in a directory, with TPM2_Startup
// (CLEAR).
func Start(ctx context.Context, state string) (*TPM, error) {
	t := &TPM{state: state, Socket: filepath.Join(state, "s")}
	return t, t.powerUp(ctx)
}

func (t *TPM) powerUp(ctx context.Context) error {
	if t.soft != nil {
		return t.softUp()
	}
	_ = os.Remove(t.Socket)
	t.cmd = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+t.state,
		"--server", "type=unixio,path="+t.Socket, "--flags", "not-need-init,startup-clear")
	t.cmd.SysProcAttr = DieWithParent()
	if err := t.cmd.Start(); err != nil {
		return fmt.Errorf("tpmtest: %w; %s", err, InstallHint)
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for { // the socket file appears before anybody listens on it
		d, err := tpm.Open(ctx, "unix:"+t.Socket)
		if err == nil {
			t.Device = d
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("tpmtest: swtpm does not answer: %w", err), t.PowerOff())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// PowerOff kills the TPM without TPM2_Shutdown, as a power cut does.
func (t *TPM) PowerOff() error {
	if t.soft != nil {
		t.soft.PowerOff()
		return nil
	}
	if t.Device != nil {
		_ = t.Device.Close()
	}
	if t.cmd == nil || t.cmd.Process == nil {
		return nil
	}
	_ = t.cmd.Process.Kill()
	_ = t.cmd.Wait()
	t.cmd = nil
	return nil
}

// Reboot shuts the TPM down in order and starts it again: PCRs are reset,
// transient objects and sessions gone, persistent ones and NV kept. The
// embedded Device is a new one.
func (t *TPM) Reboot(ctx context.Context) error {
	if _, err := (tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}).Execute(t.Device); err != nil {
		return err
	}
	if err := t.PowerOff(); err != nil {
		return err
	}
	return t.powerUp(ctx)
}

// Detach gives the socket up, so that another process can be the client. A TPM
// in this process has none to give up.
func (t *TPM) Detach() error { return t.Device.Close() }

func readCert(name string) (*x509.Certificate, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("tpmtest: %s: no PEM block", name)
	}
	return x509.ParseCertificate(block.Bytes)
}
