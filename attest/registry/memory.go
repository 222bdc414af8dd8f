package registry

import (
	"bytes"
	"container/heap"
	"context"
	"slices"
	"sync"
	"time"
)

// MemoryDevices is a DeviceStore in memory, for tests and small set-ups that
// enrol anew after a restart.
type MemoryDevices struct {
	mu sync.Mutex
	m  map[DeviceID][]byte // encoded, so that nothing is shared with callers
}

// NewMemoryDevices returns an empty store.
func NewMemoryDevices() *MemoryDevices { return &MemoryDevices{m: map[DeviceID][]byte{}} }

// Get implements DeviceStore.
func (s *MemoryDevices) Get(ctx context.Context, id DeviceID) (Device, error) {
	if err := ctx.Err(); err != nil {
		return Device{}, err
	}
	s.mu.Lock()
	b, ok := s.m[id]
	s.mu.Unlock()
	if !ok {
		return Device{}, ErrNotFound
	}
	return ParseDevice(b)
}

// Put implements DeviceStore.
func (s *MemoryDevices) Put(ctx context.Context, d Device) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	want := d.Version
	d.Version++
	b, err := d.Marshal()
	if err != nil {
		return 0, err
	}
	if _, err := ParseDevice(b); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var have uint64
	if old, ok := s.m[d.ID]; ok {
		o, err := ParseDevice(old)
		if err != nil {
			return 0, err
		}
		have = o.Version
	}
	if have != want {
		return 0, ErrConflict
	}
	s.m[d.ID] = b
	return d.Version, nil
}

// List implements DeviceStore.
func (s *MemoryDevices) List(ctx context.Context, after DeviceID, limit int) ([]Device, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []DeviceID
	for id := range s.m {
		if bytes.Compare(id[:], after[:]) > 0 {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b DeviceID) int { return bytes.Compare(a[:], b[:]) })
	var list []Device
	for _, id := range ids[:min(max(limit, 0), len(ids))] {
		d, err := ParseDevice(s.m[id])
		if err != nil {
			return nil, err
		}
		list = append(list, d)
	}
	return list, nil
}

// MemoryChallenges is a ChallengeStore in memory. It holds a bounded number of
// challenges and drops expired ones.
type MemoryChallenges struct {
	limit int
	now   func() time.Time

	mu    sync.Mutex
	m     map[string]memoryChallenge
	queue expiries // what is in m, and what was taken from it since
}

type memoryChallenge struct {
	value   []byte
	expires time.Time
}

// NewMemoryChallenges returns an empty store for at most limit open
// challenges, 65536 when limit is 0. A nil now means time.Now.
func NewMemoryChallenges(limit int, now func() time.Time) *MemoryChallenges {
	if limit <= 0 {
		limit = 1 << 16
	}
	if now == nil {
		now = time.Now
	}
	return &MemoryChallenges{limit: limit, now: now, m: map[string]memoryChallenge{}}
}

// Put implements ChallengeStore. A store that is full of challenges which have
// not expired returns ErrFull.
func (s *MemoryChallenges) Put(ctx context.Context, id string, value []byte, expires time.Time) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.m[id]; ok {
		return ErrConflict
	}
	now := s.now()
	for len(s.queue) > 0 {
		first := s.queue[0]
		c, open := s.m[first.id]
		if open && now.Before(c.expires) {
			break
		}
		heap.Pop(&s.queue)
		if open {
			delete(s.m, first.id)
		}
	}
	if len(s.queue) >= 2*s.limit { // taken ones pile up behind one that lives long
		s.queue = slices.DeleteFunc(s.queue, func(e expiry) bool { _, ok := s.m[e.id]; return !ok })
		heap.Init(&s.queue)
	}
	if len(s.m) >= s.limit {
		return ErrFull
	}
	s.m[id] = memoryChallenge{bytes.Clone(value), expires}
	heap.Push(&s.queue, expiry{id, expires})
	return nil
}

// Take implements ChallengeStore.
func (s *MemoryChallenges) Take(ctx context.Context, id string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.m[id]
	if !ok {
		return nil, ErrNotFound
	}
	delete(s.m, id)
	return c.value, nil
}

type expiry struct {
	id string
	at time.Time
}

type expiries []expiry

func (e expiries) Len() int           { return len(e) }
func (e expiries) Less(i, j int) bool { return e[i].at.Before(e[j].at) }
func (e expiries) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *expiries) Push(x any)        { *e = append(*e, x.(expiry)) }
func (e *expiries) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}
