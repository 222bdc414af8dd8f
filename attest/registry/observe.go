package registry

import "context"

// Observe returns a store that calls f with each device after it was stored:
// an enrolment, a verdict, a missed deadline, a revocation. f is called on the
// goroutine of who stored, before Put returns, possibly by several at once, so
// what f closes is closed when Revoke returns. It hears only what passes
// through this store; changes by other processes come by their own store's
// means of notification.
func Observe(s DeviceStore, f func(Device)) DeviceStore { return observed{s, f} }

type observed struct {
	DeviceStore
	f func(Device)
}

// Put implements DeviceStore.
func (o observed) Put(ctx context.Context, d Device) (uint64, error) {
	v, err := o.DeviceStore.Put(ctx, d)
	if err == nil {
		d.Version = v
		o.f(d)
	}
	return v, err
}
