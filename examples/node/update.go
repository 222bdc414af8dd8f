package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/secureboot/bootpolicy"
	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/boot"
)

// followUpdates takes releases into the other slot. At every start it first
// finds out what the boot made of the last one.
func (n *node) followUpdates(ctx context.Context) {
	if len(n.cfg.Slots) == 0 {
		return
	}
	var u *updater
	open := func(context.Context) (err error) {
		u, err = n.openUpdates()
		return err
	}
	if !n.retry(ctx, "update", open) {
		return
	}
	every := n.cfg.UpdateEvery.duration()
	if every <= 0 {
		every = 5 * time.Minute
	}
	told := "" // what is wrong, said once and not at every look
	for {
		err := n.updateOnce(ctx, u)
		switch {
		case err == nil || ctx.Err() != nil:
			told = ""
		case errors.Is(err, update.ErrNoUpdate):
			told = ""
			n.log.Info("no update", "event", "update.none", "detail", err.Error())
		case told != err.Error():
			told = err.Error()
			_ = n.lost("update", err)
		}
		if err := n.report(ctx, u); err != nil && ctx.Err() == nil {
			n.log.Warn("install report not taken", "event", "update.unreported", "error", err.Error())
		}
		if n.cfg.ExitForReboot && ctx.Err() == nil && (errors.Is(err, update.ErrHealth) || n.rebootDue(ctx, u)) {
			close(n.reboot) // into the release, or back from it
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
		}
	}
}

// updater is what following releases takes.
type updater struct {
	client *update.Client
	in     *update.Installer
	loader update.BootControl
	policy []byte // signed PCR policy of the release on trial
	told   string // the failed release that was logged
}

func (n *node) openUpdates() (*updater, error) {
	source, err := update.HTTPSource(update.HTTPConfig{URLs: []string{"http://" + wire.ServiceTUF + "/"}, Transport: n.transport})
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(n.cfg.State, "update")
	for _, d := range []string{dir, filepath.Join(dir, "tuf"), filepath.Join(dir, "floors"), filepath.Join(dir, "installer")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	_, err = os.Stat(filepath.Join(dir, "provisioned"))
	first := errors.Is(err, os.ErrNotExist)
	floors, err := update.TPMFloors(update.TPMFloorsConfig{TPM: n.tpm, Dir: filepath.Join(dir, "floors"), Provision: first})
	if err != nil {
		return nil, err
	}
	client, err := update.NewClient(update.ClientConfig{Root: n.boot.TUFRoot, Dir: filepath.Join(dir, "tuf"), Images: source, Floors: floors, Logger: n.log})
	if err != nil {
		return nil, err
	}
	loader, err := n.bootControl()
	if err != nil {
		return nil, err
	}
	slots := boot.FileSlots{Paths: map[string]string{"a/" + wire.PartImage: n.cfg.Slots[0], "b/" + wire.PartImage: n.cfg.Slots[1]}}
	u := &updater{client: client, loader: loader}
	u.in, err = update.NewInstaller(update.InstallerConfig{
		Client: client, Boot: loader, Slots: slots, Dir: filepath.Join(dir, "installer"),
		Preflight: n.preflight, Health: n.healthChecks(u),
	})
	if err == nil && first {
		err = writeFile(filepath.Join(dir, "provisioned"), nil)
	}
	return u, err
}

// bootControl is how the node speaks to what boots it.
func (n *node) bootControl() (update.BootControl, error) {
	if len(n.cfg.BootEntries) == 0 {
		return boot.NewFile(filepath.Join(n.cfg.State, "boot.json"), "a", "b")
	}
	entries, err := n.cfg.entries()
	if err != nil {
		return nil, err
	}
	return boot.NewEFI(boot.EFIConfig{Entries: entries})
}

// preflight makes sure that the volumes will open in the next boot, before the
// slot is armed: the release must carry a PCR policy that the owner signed. It
// is kept beside the present one until the next release.
func (n *node) preflight(_ context.Context, opaque map[string][]byte) error {
	signed, ok := opaque[wire.PartPolicy]
	if !ok {
		return fmt.Errorf("the release has no part %q: the volumes would not open after it", wire.PartPolicy)
	}
	if _, _, err := n.releasePCRs(signed); err != nil {
		return err
	}
	return writeFile(filepath.Join(n.cfg.Policies, policyName(signed)), signed)
}

// releasePCRs returns the PCRs of a release's policy, which the owner must have
// signed.
func (n *node) releasePCRs(signed []byte) (bank crypto.Hash, values map[int][]byte, err error) {
	key, err := x509.ParsePKIXPublicKey(n.boot.PolicyKey)
	if err != nil {
		return 0, nil, err
	}
	p, err := bootpolicy.Signed(key, signed)
	if err != nil {
		return 0, nil, err
	}
	if bank, values = p.PCRs(); len(values) == 0 {
		return 0, nil, errors.New("the release's PCR policy is not signed by the owner's policy key")
	}
	return bank, values, nil
}

// rebootDue reports whether a release waits for a reboot that was not made yet:
// one for each, so that a boot loader that does not do what it is told costs one
// reboot and not the node.
func (n *node) rebootDue(ctx context.Context, u *updater) bool {
	state, err := u.in.State(ctx)
	if err != nil || state.Phase != update.Armed {
		return false
	}
	name, want := filepath.Join(n.cfg.State, "update", "rebooted-for"), state.Release.Version+"\n"
	if old, err := wire.ReadCapped(name, 4096); err == nil && string(old) == want {
		n.log.Warn("release still waits for its boot", "event", "update.not-booted", "version", state.Release.Version)
		return false
	}
	if err := writeFile(name, []byte(want)); err != nil {
		n.log.Warn("no reboot that could not be remembered", "event", "update.not-booted", "error", err.Error())
		return false
	}
	return true
}

// healthChecks are what a release on trial must achieve before it stays.
func (n *node) healthChecks(u *updater) []update.Check {
	return []update.Check{
		{Name: "booted release", Run: func(ctx context.Context) error { return n.booted(ctx, u.policy) }},
		{Name: "system volume", Run: func(context.Context) error {
			if n.system == nil {
				return errors.New("did not open")
			}
			return nil
		}},
		{Name: "attested tunnel", Run: func(ctx context.Context) error {
			_, err := n.tunnel.Wait(ctx)
			return err
		}},
	}
}

// booted makes sure that a release is what was booted: the PCRs have the values
// of its own policy, not of another that is in force. Firmware that lost a boot
// entry may boot the other slot under its number.
func (n *node) booted(ctx context.Context, signed []byte) error {
	bank, values, err := n.releasePCRs(signed)
	if err != nil {
		return err
	}
	for pcr, want := range values {
		if want == nil { // the release may boot in several ways
			continue
		}
		got, err := (modulePCRs{n.tpm}).ReadPCR(ctx, pcr, bank)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("PCR %d is %x, the release's policy says %x: something else was booted", pcr, got, want)
		}
	}
	return nil
}

func (n *node) updateOnce(ctx context.Context, u *updater) error {
	state, err := u.in.Resume(ctx)
	if err != nil {
		return err
	}
	switch state.Phase {
	case update.Trial:
		parts, err := u.in.Parts(ctx, state.Slot)
		if err != nil {
			return err
		}
		u.policy = parts[wire.PartPolicy]
		if err := u.in.Confirm(ctx); err != nil {
			return err
		}
		if err := n.dropPolicies(ctx, u); err != nil {
			n.log.Warn("old PCR policies stay", "event", "policies.kept", "error", err.Error())
		}
		n.prove("update", "release "+state.Release.Version+" runs from slot "+string(state.Slot)+", healthy, committed; floors raised")
	case update.RolledBack:
		if failed := state.Release.Version + ": " + state.Reason; u.told != failed { // once, not at every look
			u.told = failed
			n.log.Warn("release failed and was taken back", "event", "update.rolled-back", "version", state.Release.Version, "reason", state.Reason)
		}
	case update.Armed:
		return nil // the next boot tries it
	}
	if _, err := u.client.Refresh(ctx); err != nil {
		return err
	}
	if state, err = u.in.State(ctx); err != nil {
		return err
	}
	version, err := n.version(ctx, u.loader, state)
	if err != nil {
		return err
	}
	sel, err := u.client.Select(ctx, update.Node{
		ID: n.attest.Device().String(), Hardware: n.cfg.Hardware, Channel: n.cfg.Channel, Version: version,
	})
	if err != nil {
		return err
	}
	release := sel.Release()
	if err := u.in.Install(ctx, sel); err != nil {
		return err
	}
	n.log.Info("release installed, the next boot tries it", "event", "update.armed", "version", release.Version)
	n.prove("update", "release "+release.Version+" written, verified and armed in the other slot; reboot to try it")
	return nil
}

// version is what runs: the release in the running slot, or the image that the
// node was made with.
func (n *node) version(ctx context.Context, loader update.BootControl, s update.State) (string, error) {
	slots, err := loader.Slots(ctx)
	if err != nil {
		return "", err
	}
	for _, slot := range slots {
		if v := s.Slots[slot.Slot].Version; slot.Running && v != "" {
			return v, nil
		}
	}
	return n.cfg.Image, nil
}

// dropPolicies removes the PCR policies of releases that are in no slot any
// more. While a slot holds the image that the node was made with, that image's
// policy has no name to know it by, and all stay.
func (n *node) dropPolicies(ctx context.Context, u *updater) error {
	keep := map[string]bool{}
	for _, slot := range []update.Slot{"a", "b"} {
		parts, err := u.in.Parts(ctx, slot)
		if err != nil {
			return err
		}
		signed, ok := parts[wire.PartPolicy]
		if !ok {
			return nil
		}
		keep[policyName(signed)] = true
	}
	names, err := filepath.Glob(filepath.Join(n.cfg.Policies, "*.json"))
	for _, name := range names {
		if !keep[filepath.Base(name)] {
			err = errors.Join(err, os.Remove(name))
		}
	}
	return err
}

// policyName is the file under which a signed policy is kept.
func policyName(signed []byte) string { return fmt.Sprintf("%x.json", sha256.Sum256(signed)) }

// report tells the cloud, under the node's certified key and over the cloud's
// nonce, what is installed.
func (n *node) report(ctx context.Context, u *updater) error {
	state, err := u.in.State(ctx)
	if err != nil {
		return err
	}
	running, err := n.version(ctx, u.loader, state)
	if err != nil {
		return err
	}
	status, err := u.client.Refresh(ctx)
	if err != nil {
		return err
	}
	nonce, err := n.ask(ctx, "/v1/report/begin", nil)
	if err != nil {
		return err
	}
	key, err := n.attest.DeviceKey(ctx)
	if err != nil {
		return err
	}
	signed, err := update.SignReport(update.Report{
		Node: n.attest.Device().String(), Nonce: nonce, Time: time.Now().UTC(), State: state, Floors: status.Floors, Guard: status.Guard,
	}, key)
	if err != nil {
		return err
	}
	body, err := json.Marshal(wire.SoftwareReport{Version: 1, Running: running, Signed: signed})
	if err != nil {
		return err
	}
	_, err = n.ask(ctx, "/v1/report", body)
	return err
}

// ask posts to the cloud's report service.
func (n *node) ask(ctx context.Context, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+wire.ServiceReport+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	rsp, err := (&http.Client{Transport: n.transport, Timeout: 30 * time.Second}).Do(req)
	if err != nil {
		return nil, err
	}
	defer rsp.Body.Close()
	answer, err := wire.ReadAll(rsp.Body, 4096, "answer")
	if err == nil && rsp.StatusCode >= 300 {
		err = fmt.Errorf("%s: %s: %s", path, rsp.Status, strings.TrimSpace(string(answer)))
	}
	return answer, err
}
