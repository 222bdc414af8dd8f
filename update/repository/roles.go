package repository

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/trusttree/trusttree/update/internal/tufmeta"
	"github.com/trusttree/trusttree/update/manifest"
)

// setRole replaces a top-level role's keys and threshold.
func (tx *Tx) setRole(name string, role Role) error {
	keys, ids, err := keySet(name, role)
	if err != nil {
		return err
	}
	for id, k := range keys {
		tx.root.Keys[id] = k
	}
	tx.root.Roles[name] = &metadata.Role{KeyIDs: ids, Threshold: or(role.Threshold, 1)}
	tx.changed[metadata.ROOT] = true
	tx.dropUnusedKeys()
	return nil
}

func keySet(name string, role Role) (map[string]*metadata.Key, []string, error) {
	if role.Threshold == 0 && len(role.Keys) > 1 {
		return nil, nil, fmt.Errorf("repository: role %s has %d keys and no threshold: say how many must sign", name, len(role.Keys))
	}
	threshold := or(role.Threshold, 1)
	keys, ids := map[string]*metadata.Key{}, []string{}
	for _, pub := range role.Keys {
		k, id, err := tufmeta.KeyOf(pub)
		if err != nil {
			return nil, nil, fmt.Errorf("repository: role %s: %w", name, err)
		}
		if keys[id] != nil {
			return nil, nil, fmt.Errorf("repository: role %s: key %s twice", name, id)
		}
		keys[id] = k
		ids = append(ids, id)
	}
	if threshold < 1 || threshold > len(ids) {
		return nil, nil, fmt.Errorf("repository: role %s: threshold %d with %d keys", name, threshold, len(ids))
	}
	slices.Sort(ids)
	return keys, ids, nil
}

func (tx *Tx) dropUnusedKeys() {
	for id := range tx.root.Keys {
		used := false
		for _, r := range tx.root.Roles {
			used = used || slices.Contains(r.KeyIDs, id)
		}
		if !used {
			delete(tx.root.Keys, id)
		}
	}
}

// SetRole replaces the keys and threshold of a top-level role ("root",
// "targets", "snapshot", "timestamp"): rotation and revocation. Signers of the
// old and the new root must sign. The role itself is signed anew by its new
// keys in the same edit.
func (tx *Tx) SetRole(name string, role Role) error {
	if tx.root.Roles[name] == nil {
		return fmt.Errorf("repository: no top-level role %q", name)
	}
	if err := tx.setRole(name, role); err != nil {
		return err
	}
	if name == metadata.TARGETS {
		tx.touch(metadata.TARGETS)
	}
	return nil
}

// SetOfflineGrace changes what Config.OfflineGrace said: a new root.
func (tx *Tx) SetOfflineGrace(d time.Duration) error {
	if d < 0 || d > tufmeta.MaxOfflineGrace {
		return fmt.Errorf("repository: offline grace %v, want 0 to %v", d, tufmeta.MaxOfflineGrace)
	}
	fields := maps.Clone(tx.root.UnrecognizedFields)
	if fields == nil {
		fields = map[string]any{}
	}
	delete(fields, tufmeta.OfflineField)
	if d > 0 {
		fields[tufmeta.OfflineField] = int64(d / time.Second)
	}
	tx.root.UnrecognizedFields, tx.changed[metadata.ROOT] = fields, true
	return nil
}

// makeBins delegates all targets to 2^bits bins and makes them.
func (tx *Tx) makeBins(bits int, role Role) error {
	if bits < 1 || bits > 14 {
		return fmt.Errorf("repository: %d bits of bins, want 1 to 14", bits)
	}
	keys, ids, err := keySet("bins", role)
	if err != nil {
		return err
	}
	t := tx.touch(metadata.TARGETS)
	t.Delegations = &metadata.Delegations{Keys: keys, SuccinctRoles: &metadata.SuccinctRoles{
		KeyIDs: ids, Threshold: or(role.Threshold, 1), BitLength: bits, NamePrefix: binPrefix,
	}}
	for _, name := range t.Delegations.SuccinctRoles.GetRoles() {
		bin := metadata.Targets().Signed
		bin.Version = 0
		tx.targets[name], tx.changed[name] = &bin, true
	}
	return nil
}

// Delegation gives another party a share of the target names.
type Delegation struct {
	// From is the role that delegates; empty means the top-level targets
	// role. A delegated role delegates no more than what it may list itself:
	// clients look for a target only where every role on the way covers it.
	From string
	// Name is the delegated role's name: letters, digits, '.', '_', '-', so
	// that it is the same in files and URLs whoever reads them.
	Name string
	// Role says who signs it.
	Role Role
	// Paths are glob patterns, segment by segment, of the targets it may list.
	Paths []string
	// Terminating ends the search for a target in this role.
	Terminating bool
}

// Delegate adds or replaces a delegation, with an empty role behind it that
// signers of the delegation must sign; the delegating role is signed anew. It
// can't be combined with bins. A role has one delegator.
func (tx *Tx) Delegate(d Delegation) error {
	from := or(d.From, metadata.TARGETS)
	if err := tufmeta.CheckRoleName(d.Name); err != nil {
		return fmt.Errorf("repository: %w", err)
	}
	if !manifest.IsName(d.Name) {
		return fmt.Errorf("repository: delegated role %.60q: want letters, digits, '.', '_', '-'", d.Name)
	}
	keys, ids, err := keySet(d.Name, d.Role)
	if err != nil {
		return err
	}
	if len(d.Paths) == 0 {
		return fmt.Errorf("repository: delegation %s has no paths", d.Name)
	}
	by, err := tx.delegator(d.Name)
	if err != nil {
		return err
	}
	if by != "" && by != from {
		return fmt.Errorf("repository: role %s is delegated by %s already: revoke that first", d.Name, by)
	}
	t, err := tx.edit(from)
	if err != nil {
		return err
	}
	if t.Delegations == nil {
		t.Delegations = &metadata.Delegations{Keys: map[string]*metadata.Key{}, Roles: []metadata.DelegatedRole{}}
	}
	if t.Delegations.SuccinctRoles != nil {
		return fmt.Errorf("repository: delegation %s: the targets are in bins", d.Name)
	}
	for id, k := range keys {
		t.Delegations.Keys[id] = k
	}
	role := metadata.DelegatedRole{Name: d.Name, KeyIDs: ids, Threshold: or(d.Role.Threshold, 1), Terminating: d.Terminating, Paths: d.Paths}
	if i := slices.IndexFunc(t.Delegations.Roles, func(r metadata.DelegatedRole) bool { return r.Name == d.Name }); i >= 0 {
		t.Delegations.Roles[i] = role
		dropUnusedDelegationKeys(t)
		_, err := tx.edit(d.Name)
		return err
	}
	t.Delegations.Roles = append(t.Delegations.Roles, role)
	empty := metadata.Targets().Signed
	empty.Version = 0
	tx.targets[d.Name], tx.changed[d.Name] = &empty, true
	return nil
}

// edit returns a role that this transaction may change, loading it if need be.
func (tx *Tx) edit(role string) (*metadata.TargetsType, error) {
	if tx.targets[role] == nil {
		if _, err := tx.repo.delegated(tx.ctx, role); err != nil {
			return nil, err
		}
	}
	return tx.touch(role), nil
}

// delegator returns which role delegates to another in this transaction; empty
// when none does.
func (tx *Tx) delegator(role string) (string, error) {
	return delegatorOf(role, func(name string) (*metadata.TargetsType, error) {
		if t := tx.targets[name]; t != nil {
			return t, nil
		}
		m, err := tx.repo.delegated(tx.ctx, name)
		if err != nil {
			return nil, err
		}
		return &m.Signed, nil
	})
}

func dropUnusedDelegationKeys(t *metadata.TargetsType) {
	for id := range t.Delegations.Keys {
		if !slices.ContainsFunc(t.Delegations.Roles, func(r metadata.DelegatedRole) bool { return slices.Contains(r.KeyIDs, id) }) {
			delete(t.Delegations.Keys, id)
		}
	}
}

// RevokeDelegation takes a delegation away: what it lists is no longer trusted.
// Its entry stays in the snapshot, which clients do not let shrink.
func (tx *Tx) RevokeDelegation(name string) error {
	from, err := tx.delegator(name)
	if err != nil {
		return err
	}
	if from == "" {
		return fmt.Errorf("repository: no delegation %q", name)
	}
	t, err := tx.edit(from)
	if err != nil {
		return err
	}
	t.Delegations.Roles = slices.DeleteFunc(t.Delegations.Roles, func(r metadata.DelegatedRole) bool { return r.Name == name })
	dropUnusedDelegationKeys(t)
	delete(tx.targets, name)
	delete(tx.changed, name)
	return nil
}

// AddDelegatedTarget adds a target to a delegated role. Every delegation on the
// way to it must cover the target's name.
func (tx *Tx) AddDelegatedTarget(role, name string, c Content) error {
	for at := role; at != metadata.TARGETS; {
		from, err := tx.delegator(at)
		if err != nil {
			return err
		}
		if from == "" {
			return fmt.Errorf("repository: no delegation %q", role)
		}
		t := tx.targets[from]
		if t == nil {
			t = &tx.repo.targets[from].Signed
		}
		i := slices.IndexFunc(t.Delegations.Roles, func(r metadata.DelegatedRole) bool { return r.Name == at })
		if !tufmeta.Delegated(&t.Delegations.Roles[i], name) {
			return fmt.Errorf("repository: role %s may not list %q", at, name)
		}
		at = from
	}
	_, err := tx.add(name, c.Reader, nil, func(string) (*metadata.TargetsType, error) { return tx.edit(role) })
	return err
}
