package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/secureboot/bootpolicy"
)

// NV counters of the volumes, and the latch, as in the TPM's map.
const (
	systemCounter tpm2.TPMHandle = 0x01800110
	dataCounter   tpm2.TPMHandle = 0x01800111
)

// maxPolicyFile bounds one file of signed PCR policies, in bytes.
const maxPolicyFile = 1 << 20

// bootPolicies reads the boot states in which the volumes open: for each
// software slot what the owner signed for it. All have one digest, so a new
// file needs no resealing.
func (n *node) bootPolicies() ([]fscrypt.BootPolicy, error) {
	key, err := x509.ParsePKIXPublicKey(n.boot.PolicyKey)
	if err != nil {
		return nil, fmt.Errorf("bootstrap.json: policy_key: %w", err)
	}
	names, err := filepath.Glob(filepath.Join(n.cfg.Policies, "*.json"))
	if err != nil {
		return nil, err
	}
	var out []fscrypt.BootPolicy
	for _, name := range names {
		signed, err := wire.ReadCapped(name, maxPolicyFile)
		if err != nil {
			return nil, err
		}
		p, err := bootpolicy.Signed(key, signed)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, p)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s holds no signed policy: in which boot state may the volumes open?", n.cfg.Policies)
	}
	return out, nil
}

// openVolume opens a volume, or makes it where the directory is new. guard
// protects it; tpm is the part of it that is the TPM's.
func (n *node) openVolume(ctx context.Context, label string, tpm *fscrypt.TPM, guard fscrypt.Protector) (*fscrypt.Volume, error) {
	place := n.cfg.volume(label)
	cfg := fscrypt.Config{Label: label, Logger: n.log, Kernel: place.Mode == modeKernel}
	made, cut, err := n.volumeMade(place.Path)
	if err != nil {
		return nil, err
	}
	tpm.UnsafeReplaceNV = cut // the counter of what was cut off
	if made {
		v, err := fscrypt.Open(ctx, place.Path, cfg, guard)
		if err == nil && (v.Path() != "") != cfg.Kernel {
			err = errors.Join(fmt.Errorf("%s was not made in mode %s, as the configuration says", place.Path, place.Mode), v.Lock(ctx))
		}
		if err != nil {
			return nil, err
		}
		return v, nil
	}
	recipient, err := age.ParseHybridRecipient(n.boot.RecoverTo)
	if err != nil {
		return nil, fmt.Errorf("bootstrap.json: recover_to: %w", err)
	}
	return fscrypt.Create(ctx, place.Path, cfg, guard, &fscrypt.Recovery{Recipients: []age.Recipient{recipient}})
}

// volumeMade says whether a volume was made in a directory. What a cut left of
// making one, without a header, opens by no key: it is set aside.
func (n *node) volumeMade(dir string) (made, cut bool, err error) {
	meta := filepath.Join(dir, ".fscrypt")
	entries, err := os.ReadDir(meta)
	if errors.Is(err, fs.ErrNotExist) {
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "header.") && !strings.HasSuffix(e.Name(), ".tmp") {
			return true, false, nil
		}
	}
	aside := fmt.Sprintf("%s.unfinished-%d", dir, time.Now().UnixNano())
	n.log.Warn("a volume without a header is set aside, and made anew", "event", "volume.unfinished", "directory", dir, "aside", aside)
	return false, true, os.Rename(meta, aside)
}

// openSystem opens the volume that needs the TPM in the right boot state and
// nothing else.
func (n *node) openSystem(ctx context.Context) error {
	policies, err := n.bootPolicies()
	if err != nil {
		return err
	}
	tpm := &fscrypt.TPM{Device: n.tpm, Policies: policies, Counter: systemCounter, Keep: n.keep}
	n.system, err = n.openVolume(ctx, "system", tpm, tpm)
	if err != nil {
		return err
	}
	if err := n.touch(n.system); err != nil {
		return err
	}
	n.prove("system volume", "unsealed in the boot state that the owner signed"+where(n.system)+"; latched until the next boot")
	return nil
}

// keepData opens the data volume once the cloud releases its share, and renews
// the lease for as long as the node runs.
func (n *node) keepData(ctx context.Context) {
	if n.system == nil {
		_ = n.lost("data volume", errors.New("stays closed: the system volume did not open"))
		return
	}
	if !n.retry(ctx, "data volume", n.openData) {
		return
	}
	n.prove("data volume", "unsealed with the cloud's share"+where(n.data)+", on lease")
	for {
		until, err := n.data.RenewLease(ctx)
		if n.data.Status().Locked {
			if ctx.Err() == nil {
				_ = n.lost("data volume", errors.Join(errors.New("closed until the next boot"), err))
			}
			return
		}
		if err != nil && ctx.Err() == nil {
			_ = n.lost("data volume", err)
		}
		wait := max(time.Until(until)/3, time.Second)
		select {
		case <-ctx.Done():
			return
		case <-n.shutOut:
			// The cloud said so inside the tunnel that it authenticated. What is
			// kept for a restart goes, too.
			if err := n.data.Lock(ctx); err != nil {
				n.log.Error("data volume stays open after a revocation", "event", "volume.open", "error", err.Error())
			}
		case <-time.After(wait):
		}
	}
}

func (n *node) openData(ctx context.Context) error {
	select {
	case <-n.shutOut: // of before
	default:
	}
	policies, err := n.bootPolicies()
	if err != nil {
		return err
	}
	tpm := &fscrypt.TPM{Device: n.tpm, Policies: policies, Counter: dataCounter, After: [][]byte{n.system.Latch()}, Keep: n.keep}
	guard := fscrypt.All(tpm, &fscrypt.Remote{Service: n.boot.GatewayID, Exchange: n.exchangeShare})
	v, err := n.openVolume(ctx, "data", tpm, guard)
	if err != nil {
		return err
	}
	n.data = v
	return n.touch(v)
}

// exchangeShare carries a request for the share through the tunnel.
func (n *node) exchangeShare(ctx context.Context, request []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+wire.ServiceKeys+"/v1/share", bytes.NewReader(request))
	if err != nil {
		return nil, err
	}
	rsp, err := (&http.Client{Transport: n.transport, Timeout: 30 * time.Second}).Do(req)
	if err != nil {
		return nil, err
	}
	defer rsp.Body.Close()
	body, err := wire.ReadAll(rsp.Body, 16<<10, "share")
	if err == nil && rsp.StatusCode != http.StatusOK {
		err = fmt.Errorf("share: %s: %s", rsp.Status, strings.TrimSpace(string(body)))
	}
	return body, err
}

// touch writes and reads a file: a volume that opened but does not hold what
// it is given is not open.
func (n *node) touch(v *fscrypt.Volume) error {
	write, read := v.WriteFile, v.ReadFile
	if dir := v.Path(); dir != "" {
		write = func(name string, data []byte) error { return writeFile(filepath.Join(dir, name), data) }
		read = func(name string) ([]byte, error) { return wire.ReadCapped(filepath.Join(dir, name), 4096) }
	}
	line := []byte("last opened " + time.Now().UTC().Format(time.RFC3339Nano) + "\n")
	if err := write("opened", line); err != nil {
		return err
	}
	back, err := read("opened")
	if err == nil && !bytes.Equal(back, line) {
		err = errors.New("volume does not give back what was written")
	}
	return err
}

// where says of a kernel mode volume at which directory programs find it.
func where(v *fscrypt.Volume) string {
	if v.Path() == "" {
		return ""
	}
	return ", kernel mode at " + v.Path()
}
