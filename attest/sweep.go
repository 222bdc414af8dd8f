package attest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/trusttree/trusttree/attest/registry"
)

const (
	sweepPage   = 256 // devices read at a time
	sweepErrors = 16  // devices that can't be written are told of
)

var errNothingToDo = errors.New("nothing to do")

// Sweep marks every device whose deadline has passed without a successful
// appraisal as failing and returns them. Run it every few seconds, on one
// instance or on all: each missed deadline is found once. Who must learn of
// changes at once wraps the store in registry.Observe. A device that can't be
// written is passed by, and the error tells it.
func (v *Verifier) Sweep(ctx context.Context) (missed []registry.DeviceID, err error) {
	if err := v.made(); err != nil {
		return nil, err
	}
	now := v.c.Now()
	var failed []error
	overdue := func(d registry.Device) bool { return d.State == registry.Affirming && now.After(d.Deadline) }
	var after registry.DeviceID
	for {
		page, err := v.c.Devices.List(ctx, after, sweepPage)
		if err != nil {
			return missed, fmt.Errorf("attest: sweep: %w", errors.Join(append(failed, err)...))
		}
		for _, d := range page {
			after = d.ID
			if !overdue(d) {
				continue
			}
			found := false
			err := update(ctx, v.c.Devices, d.ID, func(d *registry.Device) error {
				if found = overdue(*d); !found {
					return errNothingToDo // it has attested, or another instance was faster
				}
				d.State, d.Reason = registry.Failing, "deadline missed: no evidence since "+d.Appraised.UTC().Format(time.RFC3339)
				return nil
			})
			switch {
			case err == nil:
				missed = append(missed, d.ID)
				v.c.Log.WarnContext(ctx, "deadline missed", "event", "attest.deadline-missed", "device", d.ID.String(), "deadline", d.Deadline)
			case !errors.Is(err, errNothingToDo):
				if len(failed) < sweepErrors {
					failed = append(failed, err)
				}
				if ctx.Err() != nil {
					return missed, errors.Join(failed...)
				}
			}
		}
		if len(page) < sweepPage {
			return missed, errors.Join(failed...)
		}
	}
}
