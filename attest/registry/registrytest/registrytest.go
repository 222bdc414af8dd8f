// Package registrytest checks implementations of registry's stores. Call its
// functions from a test of your own.
package registrytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trusttree/trusttree/attest/registry"
)

func sample(n byte) registry.Device {
	return registry.Device{
		ID: registry.DeviceID{1: n, 31: 1}, State: registry.Enrolled, EKCertificate: []byte{1, 2}, AKPublic: []byte{3},
		KeySPKI: []byte{4}, Manufacturer: "id:00001014", Enrolled: time.Unix(1700000000, 0).UTC(),
	}
}

// Devices checks an empty DeviceStore.
func Devices(t *testing.T, s registry.DeviceStore) {
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	want := func(err, class error, what string) {
		t.Helper()
		if !errors.Is(err, class) {
			t.Errorf("%s: got error %v, want %v", what, err, class)
		}
	}
	_, err := s.Get(ctx, sample(1).ID)
	want(err, registry.ErrNotFound, "get from the empty store")

	d := sample(1)
	v, err := s.Put(ctx, d)
	must(err)
	if v != 1 {
		t.Errorf("first put returned version %d, want 1", v)
	}
	_, err = s.Put(ctx, d)
	want(err, registry.ErrConflict, "create what exists")
	got, err := s.Get(ctx, d.ID)
	must(err)
	if got.Version != 1 || got.State != registry.Enrolled || !bytes.Equal(got.EKCertificate, d.EKCertificate) || !got.Enrolled.Equal(d.Enrolled) {
		t.Errorf("got back %+v, stored %+v", got, d)
	}
	stale := got
	got.State = registry.Revoked
	_, err = s.Put(ctx, got)
	must(err)
	stale.State = registry.Affirming
	_, err = s.Put(ctx, stale)
	want(err, registry.ErrConflict, "write over a newer entry: a revocation is lost")
	missing := sample(9)
	missing.Version = 7
	_, err = s.Put(ctx, missing)
	want(err, registry.ErrConflict, "update what does not exist")

	for n := byte(2); n < 7; n++ {
		_, err := s.Put(ctx, sample(n))
		must(err)
	}
	var seen []byte
	var after registry.DeviceID
	for range 10 {
		page, err := s.List(ctx, after, 2)
		must(err)
		if len(page) == 0 {
			break
		}
		if len(page) > 2 {
			t.Fatalf("list of at most 2 has %d", len(page))
		}
		for _, d := range page {
			seen = append(seen, d.ID[1])
			after = d.ID
		}
	}
	if !bytes.Equal(seen, []byte{1, 2, 3, 4, 5, 6}) {
		t.Errorf("listed %v, want 1 to 6 in order", seen)
	}

	const writers, writes = 8, 5
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	for range writers {
		wg.Go(func() {
			for done := 0; done < writes; {
				d, err := s.Get(ctx, sample(2).ID)
				if err == nil {
					d.Clock++
					_, err = s.Put(ctx, d)
				}
				switch {
				case err == nil:
					done++
				case !errors.Is(err, registry.ErrConflict):
					failed.Store(&err)
					return
				}
			}
		})
	}
	wg.Wait()
	if p := failed.Load(); p != nil {
		t.Fatal(*p)
	}
	got, err = s.Get(ctx, sample(2).ID)
	must(err)
	if got.Clock != writers*writes {
		t.Errorf("%d concurrent increments arrived, want %d", got.Clock, writers*writes)
	}
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Get(ctx, d.ID); err == nil {
		t.Error("get with a cancelled context succeeded")
	}
}

// Challenges checks an empty ChallengeStore.
func Challenges(t *testing.T, s registry.ChallengeStore) {
	ctx := t.Context()
	later := time.Now().Add(time.Hour)
	if _, err := s.Take(ctx, "never"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("take of what was never put: %v", err)
	}
	for i := range 20 {
		if err := s.Put(ctx, fmt.Sprint("id", i), []byte{byte(i)}, later); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Put(ctx, "id3", []byte("other"), later); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("put over an open challenge: %v", err)
	}
	for i := range 20 {
		var wg sync.WaitGroup
		var got atomic.Int32
		for range 4 {
			wg.Go(func() {
				v, err := s.Take(ctx, fmt.Sprint("id", i))
				switch {
				case err == nil && bytes.Equal(v, []byte{byte(i)}):
					got.Add(1)
				case err == nil:
					t.Errorf("took %x, put %x", v, i)
				case !errors.Is(err, registry.ErrNotFound):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := got.Load(); n != 1 {
			t.Fatalf("%d of 4 concurrent takes got the challenge, want exactly 1", n)
		}
	}
}
