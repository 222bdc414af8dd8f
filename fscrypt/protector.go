package fscrypt

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// Protector guards a secret in a slot of the header. Those of this package are
// *TPM, *Remote, *Recovery, *Passphrase and All; a vendor may add its own.
type Protector interface {
	// Type names the kind of slot, for example "tpm".
	Type() string
	// Wrap makes a slot that holds secret.
	Wrap(ctx context.Context, secret *Secret, b Binding) (Slot, error)
	// Unwrap returns the secret of a slot that Wrap made. The slot comes from
	// a disk that nothing has authenticated yet.
	Unwrap(ctx context.Context, s Slot, b Binding) (*Secret, error)
}

// Slot is a stored secret. Its Data is public.
type Slot struct {
	ID   string          `json:"id"`
	Type string          `json:"type"`
	Data json.RawMessage `json:"data"`
}

// clone copies a slot out of memory that will be erased.
func (s Slot) clone() Slot {
	return Slot{ID: strings.Clone(s.ID), Type: strings.Clone(s.Type), Data: slices.Clone(s.Data)}
}

// Binding names the place of a slot, for a Protector to bind its secret to.
type Binding struct {
	Volume string // UUID of the volume, 32 hexadecimal digits
	Label  string // the volume's label, for example "data"
	Slot   string // ID of the slot

	notes *notes
}

// notes collects what an attempt to open leaves to be done.
type notes struct {
	latches []func(digest []byte) error
	lease   *lease
	shares  map[tpm2.TPMHandle]bool // NV indices that slots in force need

	// Revocation counters: of slots in force, of those whose place the slots
	// made take, and of the slots made.
	counters, replaced, bound map[tpm2.TPMHandle]bool

	guessed bool // a TPM refused the PIN

	kept   []kept                        // for TPM.Keep, once the slots are in force
	reused bool                          // a TPM.Keep had what opened a slot: the latch is closed already
	undos  []func(context.Context) error // take back what a slot made outside the header
}

// undo takes back what slots that did not come into force made.
func (n *notes) undo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), latchTimeout)
	defer cancel()
	var errs []error
	for _, u := range n.undos {
		errs = append(errs, u(ctx))
	}
	n.undos = nil
	n.forget()
	return errors.Join(errs...)
}

// lease is the time for which a share was released.
type lease struct {
	until time.Time // with the monotonic clock's reading
	renew func(context.Context) (time.Time, error)
}

type all struct{ parts []Protector }

// All needs every one of its parts: the secret is the XOR of one share each.
// TPMs are asked last, so that a share that can't be had, for example because
// the network is down, leaves the TPM's latch open for another try.
func All(parts ...Protector) Protector { return all{parts} }

// Type names the types of the parts.
func (a all) Type() string {
	var t []string
	for _, p := range a.parts {
		t = append(t, p.Type())
	}
	return "all(" + strings.Join(t, ",") + ")"
}

type allData struct {
	Parts []Slot `json:"parts"`
}

func (a all) part(b Binding, i int) Binding {
	b.Slot = fmt.Sprintf("%s.%d", b.Slot, i)
	return b
}

// Wrap implements Protector.
func (a all) Wrap(ctx context.Context, secret *Secret, b Binding) (Slot, error) {
	if len(a.parts) < 2 {
		return Slot{}, errors.New("All needs two parts or more")
	}
	rest, err := secret.clone()
	if err != nil {
		return Slot{}, err
	}
	defer rest.Erase()
	var d allData
	for i, p := range a.parts {
		share := rest
		if i < len(a.parts)-1 {
			share = randomSecret()
			defer share.Erase()
			if err := rest.xor(share); err != nil {
				return Slot{}, err
			}
		}
		s, err := p.Wrap(ctx, share, a.part(b, i))
		if err != nil {
			return Slot{}, fmt.Errorf("%s: %w", p.Type(), err)
		}
		d.Parts = append(d.Parts, s)
	}
	return newSlot(b, a.Type(), d)
}

// Unwrap implements Protector.
func (a all) Unwrap(ctx context.Context, s Slot, b Binding) (*Secret, error) {
	var d allData
	if err := strictJSON(s.Data, &d); err != nil {
		return nil, fmt.Errorf("slot: %w: %w", ErrTampered, err)
	}
	if len(d.Parts) != len(a.parts) || len(a.parts) < 2 {
		return nil, fmt.Errorf("slot has %d parts, the protector %d: %w", len(d.Parts), len(a.parts), ErrNoSlot)
	}
	order := make([]int, len(a.parts))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(x, y int) int { return cmp.Compare(lateness(a.parts[x]), lateness(a.parts[y])) })
	sum := newSecret()
	for _, i := range order {
		if err := a.unwrapPart(ctx, sum, i, d.Parts[i], b); err != nil {
			sum.Erase()
			return nil, err
		}
	}
	return sum, nil
}

func (a all) unwrapPart(ctx context.Context, sum *Secret, i int, s Slot, b Binding) error {
	if s.Type != a.parts[i].Type() {
		return fmt.Errorf("part %d is of type %.20q, not %s: %w", i, s.Type, a.parts[i].Type(), ErrNoSlot)
	}
	share, err := a.parts[i].Unwrap(ctx, s, a.part(b, i))
	if err != nil {
		return fmt.Errorf("%s: %w", a.parts[i].Type(), err)
	}
	defer share.Erase()
	return sum.xor(share)
}

// lateness puts TPMs behind everything else.
func lateness(p Protector) int {
	if len(tpmsOf(p)) > 0 {
		return 1
	}
	return 0
}

// tpmsOf lists the TPMs among protectors and their parts.
func tpmsOf(ps ...Protector) []*TPM {
	var t []*TPM
	for _, p := range ps {
		switch p := p.(type) {
		case *TPM:
			t = append(t, p)
		case all:
			t = append(t, tpmsOf(p.parts...)...)
		}
	}
	return t
}

func newSlot(b Binding, typ string, data any) (Slot, error) {
	raw, err := json.Marshal(data)
	if err != nil {
		return Slot{}, err
	}
	return Slot{ID: b.Slot, Type: typ, Data: raw}, nil
}
