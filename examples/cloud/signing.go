package main

import (
	"crypto"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/moduleid/revocation"
	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/bootpolicy"
	"github.com/trusttree/trusttree/secureboot/eventlog"
	"github.com/trusttree/trusttree/tenantstore"
)

// offlineKey loads one of the owner's keys, from where it was made or from the
// file that is given.
func offlineKey(state, name, file string) (crypto.Signer, error) {
	if file == "" {
		file = filepath.Join(state, name)
	}
	key, err := loadKey(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w (it is kept offline? -key says where it is)", err)
	}
	return key, err
}

// signModules writes a list of revoked modules, signed by the owner's key, for
// PUT /v1/admin/module-revocations. A list is whole: it names what was revoked
// before, too.
func signModules(state, keyFile string, sequence uint64, ids string, stdout io.Writer) error {
	if sequence == 0 {
		return wire.Usage("-sequence is missing: give a number above that of the list in force")
	}
	list := revocation.List{Version: 1, Sequence: sequence, Issued: time.Now().UTC()}
	for id := range strings.SplitSeq(ids, ",") {
		if id = strings.ToLower(strings.TrimSpace(id)); id == "" {
			continue
		}
		if b, err := hex.DecodeString(id); err != nil || len(b) != 32 {
			return wire.Usage("-revoke: %q is no module ID: 64 hexadecimal digits, as modulescan shows them", id)
		}
		list.IDs = append(list.IDs, id)
	}
	key, err := offlineKey(state, "owner.key", keyFile)
	if err != nil {
		return err
	}
	signed, err := revocation.Sign(list, key)
	if err != nil {
		return err
	}
	_, err = stdout.Write(append(signed, '\n'))
	return err
}

// maxAssignments bounds a file of assignments, in bytes.
const maxAssignments = 1 << 20

// signAssignments writes assignments, signed by the owner's key, for PUT
// /v1/admin/assignments.
func signAssignments(state, keyFile, in string, stdout io.Writer) error {
	if in == "" {
		return wire.Usage("-in FILE is missing: which stream of which node is whose?")
	}
	text, err := wire.ReadCapped(in, maxAssignments)
	if err != nil {
		return err
	}
	var a tenantstore.Assignments
	if err := wire.Decode(text, maxAssignments, &a); err != nil {
		return wire.Usage("%s: %w", in, err)
	}
	if !time.Now().Before(a.Expires) {
		return wire.Usage("%s: expires at %s, which has passed: all would be denied", in, a.Expires.Format(time.RFC3339))
	}
	key, err := offlineKey(state, "owner.key", keyFile)
	if err != nil {
		return err
	}
	signed, err := tenantstore.SignAssignments(a, key)
	if err != nil {
		return fmt.Errorf("%s: %w", in, err)
	}
	_, err = stdout.Write(signed)
	return err
}

// bootOptions are the flags of `cloud boot`.
type bootOptions struct {
	log, name            string
	serial               uint64
	life                 time.Duration
	reference, pcrPolicy string
}

// volumePCRs are what volumes are bound to: firmware code, option ROMs, loader,
// Secure Boot state and kernel.
var volumePCRs = []int{0, 2, 4, 7, 11}

// maxEventLog bounds a firmware's log, in bytes.
const maxEventLog = 4 << 20

// signBoot signs, by the policy key, what a boot measured that its owner knows
// to be good: reference values for the cloud, and the PCR policy under which the
// node's volumes open. It is for one kind of node and one version of its
// software; bootcheck learn makes policies of several boots.
func signBoot(state, keyFile string, o bootOptions, stdout io.Writer) error {
	if o.log == "" || o.reference == "" || o.pcrPolicy == "" {
		return wire.Usage("-log, -reference and -pcr-policy each need a file")
	}
	log, err := wire.ReadCapped(o.log, maxEventLog)
	if err != nil {
		return err
	}
	parsed, err := eventlog.Parse(log, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", o.log, err)
	}
	values, err := parsed.Replay(crypto.SHA256)
	if err != nil {
		return fmt.Errorf("%s: %w", o.log, err)
	}
	policy, err := secureboot.Learn(secureboot.LearnOptions{
		Name: o.name, Serial: o.serial, NotAfter: time.Now().Add(o.life).UTC().Truncate(time.Second), PinPCR7: true,
		Replay: []int{1, 5}, Ignore: []int{modulePCR, 15, 16, 23},
	}, secureboot.Evidence{Bank: crypto.SHA256, PCRs: values, EventLog: log})
	if err != nil {
		return fmt.Errorf("%s: %w", o.log, err)
	}
	key, err := offlineKey(state, "policy.key", keyFile)
	if err != nil {
		return err
	}
	reference, err := secureboot.SignPolicy(policy, key)
	if err != nil {
		return err
	}
	bound := map[int][]byte{}
	for _, pcr := range volumePCRs {
		bound[pcr] = values[pcr]
	}
	pcrs, err := bootpolicy.SignPCRs(key, crypto.SHA256, bound)
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{o.reference: reference, o.pcrPolicy: pcrs} {
		if err := os.WriteFile(name, data, 0o644); err != nil {
			return err
		}
	}
	fmt.Fprintf(stdout, "%s: reference values %s, serial %d, until %s\n%s: PCR policy over %v\n", o.reference, o.name, o.serial, policy.NotAfter.Format(time.DateOnly), o.pcrPolicy, volumePCRs)
	return nil
}
