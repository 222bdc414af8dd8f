package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/tenantstore"
)

// floors say which reference values may be in force, by the serial that their
// owner signed, in the store that all instances share. Releases in the field each
// have their own, so a new one does not end those before it. But what was not in
// force yet must not be older than the newest that ever was, so that who can put
// files into the cloud's directories, and not sign, brings no old boot back that
// this cloud never knew; and an operator's floor ends for ever what is below it.
type floors struct {
	records *tenantstore.Collection
}

var floorsKey = []byte("reference-floors")

// maxAccepted bounds how many policies of one name are remembered; the oldest
// go first.
const maxAccepted = 4096

// floorRecord is the stored format.
type floorRecord struct {
	Version int                   `json:"version"` // 1
	Names   map[string]*nameFloor `json:"names"`   // by the policy's name
}

type nameFloor struct {
	Floor   uint64 `json:"floor"`   // an operator's: nothing below it counts
	Highest uint64 `json:"highest"` // serial that was ever in force
	// Accepted are the policies that were, by SHA-256, with their serials.
	Accepted map[string]uint64 `json:"accepted"`
}

// maxFloors bounds the record, in bytes.
const maxFloors = 8 << 20

func (f *floors) load(ctx context.Context) (*floorRecord, uint64, error) {
	rec, err := f.records.Get(ctx, floorsKey)
	if errors.Is(err, tenantstore.ErrNotFound) {
		return &floorRecord{Version: 1, Names: map[string]*nameFloor{}}, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	var r floorRecord
	if err := wire.Decode(rec.Value, maxFloors, &r); err != nil || r.Version != 1 {
		return nil, 0, fmt.Errorf("floors of reference values, version %d: %w", r.Version, err)
	}
	return &r, rec.Version, nil
}

// change applies do to the record and keeps it; do reports whether it changed
// anything. It may run more than once.
func (f *floors) change(ctx context.Context, do func(*floorRecord) (bool, error)) error {
	for {
		r, version, err := f.load(ctx)
		if err != nil {
			return err
		}
		changed, err := do(r)
		if err != nil || !changed {
			return err
		}
		value, err := json.Marshal(r)
		if err != nil {
			return err
		}
		_, err = f.records.PutIf(ctx, floorsKey, value, version)
		if !errors.Is(err, tenantstore.ErrConflict) { // else another instance was first
			return err
		}
	}
}

// admit returns those of refs, in ascending order of serials, that may be in
// force; refuse hears of the others. It is durable that they were.
func (f *floors) admit(ctx context.Context, refs []reference, refuse func(source string, err error)) (out []reference, err error) {
	refused := map[string]error{}
	err = f.change(ctx, func(r *floorRecord) (changed bool, _ error) {
		out = out[:0]
		clear(refused)
		for _, ref := range refs {
			fresh, err := r.admit(ref)
			if err != nil {
				refused[ref.source] = err
				continue
			}
			changed = changed || fresh
			out = append(out, ref)
		}
		return changed, nil
	})
	for source, why := range refused {
		refuse(source, why)
	}
	return out, err
}

func (r *floorRecord) admit(ref reference) (fresh bool, err error) {
	p := ref.policy
	n := r.Names[p.Name]
	if n == nil {
		n = &nameFloor{Accepted: map[string]uint64{}}
		r.Names[p.Name] = n
	}
	_, known := n.Accepted[ref.digest]
	switch {
	case p.Serial < n.Floor:
		return false, fmt.Errorf("%w: %s, serial %d is below the floor %d that an operator set", secureboot.ErrPolicyRollback, p.Name, p.Serial, n.Floor)
	case known:
		return false, nil
	case p.Serial < n.Highest:
		return false, fmt.Errorf("%w: %s, serial %d was not in force here before, and serial %d is: sign it with a higher one if it is meant", secureboot.ErrPolicyRollback, p.Name, p.Serial, n.Highest)
	}
	n.Highest, n.Accepted[ref.digest] = p.Serial, p.Serial
	for len(n.Accepted) > maxAccepted {
		n.dropOldest()
	}
	return true, nil
}

func (n *nameFloor) dropOldest() {
	oldest := ""
	for digest, serial := range n.Accepted {
		if oldest == "" || serial < n.Accepted[oldest] {
			oldest = digest
		}
	}
	delete(n.Accepted, oldest)
}

// raise sets an operator's floor. It never falls, and never ends everything.
func (f *floors) raise(ctx context.Context, name string, serial uint64) error {
	return f.change(ctx, func(r *floorRecord) (bool, error) {
		n := r.Names[name]
		switch {
		case n == nil:
			return false, fmt.Errorf("%w: no reference values with the name %q were ever in force", tenantstore.ErrInvalid, name)
		case serial < n.Floor:
			return false, fmt.Errorf("%w: the floor of %s is %d, and only rises", tenantstore.ErrInvalid, name, n.Floor)
		case serial > n.Highest:
			return false, fmt.Errorf("%w: the newest reference values of %s have serial %d: a floor above that would refuse every node", tenantstore.ErrInvalid, name, n.Highest)
		}
		n.Floor = serial
		for digest, s := range n.Accepted {
			if s < serial {
				delete(n.Accepted, digest)
			}
		}
		return true, nil
	})
}

// floorRequest is the body of an operator's PUT.
type floorRequest struct {
	Version int    `json:"version"` // 1
	Name    string `json:"name"`    // of the reference values
	Serial  uint64 `json:"serial"`  // the lowest that counts
}

// raiseFloor ends reference values for ever; all nodes are asked for evidence.
func (a *admin) raiseFloor(w http.ResponseWriter, r *http.Request, _ tenantstore.Principal) error {
	body, err := wire.ReadAll(r.Body, maxAdmin, "request")
	var req floorRequest
	if err == nil {
		err = wire.Decode(body, maxAdmin, &req)
	}
	if err != nil || req.Version != 1 {
		return fmt.Errorf(`%w: give {"version":1,"name":NAME,"serial":N} (%v)`, tenantstore.ErrInvalid, err)
	}
	if err := a.references.floors.raise(r.Context(), req.Name, req.Serial); err != nil {
		return err
	}
	if err := a.act(r.Context(), change{Kind: "references"}); err != nil {
		return err
	}
	a.log.Warn("floor of reference values raised", "event", "reference.floor", "name", req.Name, "serial", req.Serial, "by", subject(r))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// listReferences shows operators what is in force.
func (a *admin) listReferences(w http.ResponseWriter, r *http.Request, _ tenantstore.Principal) error {
	refs, err := a.references.list(r.Context())
	if err != nil {
		return err
	}
	type view struct {
		Name     string    `json:"name"`
		Serial   uint64    `json:"serial"`
		NotAfter time.Time `json:"not_after"`
		Source   string    `json:"source"`
	}
	out := []view{}
	for _, ref := range refs {
		out = append(out, view{ref.policy.Name, ref.policy.Serial, ref.policy.NotAfter, ref.source})
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(out)
}
