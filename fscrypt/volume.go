package fscrypt

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/trusttree/trusttree/fscrypt/internal/disk"
	"github.com/trusttree/trusttree/fscrypt/internal/journal"
	"github.com/trusttree/trusttree/internal/durable"
)

const (
	modePortable = "portable"
	modeKernel   = "kernel"

	metaDir = ".fscrypt" // below the volume's directory
)

// refusedLatch is what the latch PCR is extended with after a refusal.
var refusedLatch = sha256.Sum256([]byte("trusttree fscrypt v1 refused"))

// Config says how a volume is created or opened. The zero value opens; Create
// needs a Label.
type Config struct {
	// Label says what the volume is for, for example "data": 1 to 64 bytes.
	// Slots and shares are bound to it. On Open, empty means any.
	Label string
	// Kernel makes Create encrypt a directory with the kernel (fscrypt policy
	// version 2, on ext4, f2fs or ubifs) instead of the portable format: any
	// program reads and writes below Volume.Path, at the kernel's speed, but
	// nothing authenticates contents, and Checkpoint witnesses only the
	// header. Needs Linux.
	Kernel bool
	// UnsafeNoFreshness lets Create make a volume without a counter in a TPM:
	// whoever holds the disk can put an older copy of it back unnoticed.
	UnsafeNoFreshness bool
	// PadSizes hides the sizes of files written, at the cost of up to 12 % of
	// space. It counts for as long as the volume is open.
	PadSizes bool
	// CacheBytes bounds the decrypted chunks kept for random reads. Zero means
	// 8 MiB; chunks have 64 KiB.
	CacheBytes int
	// Progress is called by Rotate after each file. Nil means none.
	Progress func(done, total int)
	// Logger gets security events with a stable attribute "event" and no
	// secret. Nil means none.
	Logger *slog.Logger
}

// Volume is an open volume. Its methods are safe for concurrent use. One
// process at a time has a volume open. Lock it when done.
type Volume struct {
	dir    string
	disk   disk.FS
	logger *slog.Logger

	wmu sync.Mutex // held by whoever changes the log or the header
	log *journal.Log
	num logFile

	mu      sync.RWMutex
	header  *header
	private *private
	stable  *Secret
	tree    *tree              // of a kernel mode volume
	keys    map[uint64]*Secret // volume keys by epoch
	m       *manifest
	open    map[string]int // open files and writers by name
	locked  error          // why the volume is closed, nil while it is open
	lease   *lease
	timer   *time.Timer
	latch   []byte
	latched bool   // the latch was extended with it; guarded by wmu
	slot    string // that opened the volume

	given     []Protector // by Create, Open or Rotate
	progress  func(done, total int)
	pad       bool
	counter   *TPM   // nil where no TPM was given
	witnessed uint64 // the counter's value last seen
	cache     *chunkCache
}

// Create makes a volume in an empty or missing directory and opens it. Each
// protector becomes a slot: any one of them opens the volume later. Give a
// Recovery besides the TPM, or a broken TPM takes the data with it.
//
// The TPM's latch closes as it does on Open: the volume opens again after a
// reboot, volumes that were created one after another in the same order with
// each one's Latch in the next one's TPM.After.
func Create(ctx context.Context, dir string, cfg Config, protectors ...Protector) (v *Volume, err error) {
	defer boundary("create "+dir, &err)
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Name() != "lost+found" {
			return nil, fmt.Errorf("holds %s: a volume is created in an empty directory only", e.Name())
		}
	}
	meta := filepath.Join(dir, metaDir)
	if err := durable.MkdirAll(meta, 0o700); err != nil {
		return nil, err
	}
	d, err := disk.OpenOS(meta)
	if err != nil {
		return nil, err
	}
	v, err = createOn(ctx, dir, d, cfg, protectors)
	if err != nil {
		// What is left is no volume: without a header nothing opens it.
		return nil, errors.Join(err, d.Close(), os.RemoveAll(meta))
	}
	return v, nil
}

// Open opens a volume with whichever of the protectors fits a slot, tried in
// the order given. It creates nothing, and it falls back to nothing.
//
// Errors wrap this package's sentinels; those of all attempts are joined.
func Open(ctx context.Context, dir string, cfg Config, protectors ...Protector) (v *Volume, err error) {
	defer boundary("open "+dir, &err)
	meta := filepath.Join(dir, metaDir)
	if fi, err := os.Lstat(meta); err != nil {
		return nil, fmt.Errorf("%w (no volume was created here)", err)
	} else if !fi.IsDir() {
		return nil, fmt.Errorf("%s is not a directory: %w", meta, ErrWrongVolume)
	}
	d, err := disk.OpenOS(meta)
	if err != nil {
		return nil, err
	}
	v, err = openOn(ctx, dir, d, cfg, protectors)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return v, nil
}

func newVolume(dir string, d disk.FS, cfg Config, protectors []Protector) *Volume {
	v := &Volume{dir: dir, disk: d, logger: cfg.Logger, open: map[string]int{}, keys: map[uint64]*Secret{}, cache: newChunkCache(cfg.CacheBytes), given: protectors, progress: cfg.Progress, pad: cfg.PadSizes}
	if v.logger == nil {
		v.logger = slog.New(slog.DiscardHandler)
	}
	for _, t := range tpmsOf(protectors...) {
		v.counter = t
		if t.Counter != 0 {
			break
		}
	}
	return v
}

func createOn(ctx context.Context, dir string, d disk.FS, cfg Config, protectors []Protector) (_ *Volume, err error) {
	v := newVolume(dir, d, cfg, protectors)
	defer func() {
		if err != nil {
			err = errors.Join(err, v.abandon())
		}
	}()
	mode := modePortable
	if cfg.Kernel {
		mode = modeKernel
	}
	if v.header, err = newHeader(cfg.Label, mode); err != nil {
		return nil, err
	}
	v.header.Generation = 1
	vk := randomSecret()
	v.keys[v.header.Epoch] = vk
	stable := randomSecret()
	v.private = new(private)
	if err := stable.Use(func(b []byte) error { v.private.Stable = slices.Clone(b); return nil }); err != nil {
		return nil, err
	}
	v.stable = stable
	if v.counter != nil && v.counter.Counter == 0 {
		v.counter = nil
	}
	if v.counter == nil && !cfg.UnsafeNoFreshness {
		return nil, errors.New("no TPM protector with a Counter: an older copy of the disk could be put back unnoticed (UnsafeNoFreshness allows it)")
	}
	n := new(notes)
	defer func() {
		if err != nil {
			err = errors.Join(err, n.undo(ctx))
		}
	}()
	if v.header.Slots, err = makeSlots(ctx, v.header, vk, n, protectors); err != nil {
		return nil, err
	}
	if v.counter != nil {
		if err := v.defineCounter(ctx); err != nil {
			return nil, err
		}
	}
	if err := v.setLatch(); err != nil {
		return nil, err
	}
	if err := v.format(ctx); err != nil {
		return nil, errors.Join(err, v.dropCounter(ctx))
	}
	v.latched = len(n.latches) > 0
	if err := closeLatches(n, v.latch); err != nil {
		return nil, errors.Join(err, v.dropCounter(ctx))
	}
	v.event(ctx, slog.LevelInfo, "fscrypt.created")
	return v, nil
}

// format writes what a new volume consists of: the header last, since without
// it there is no volume.
func (v *Volume) format(ctx context.Context) (err error) {
	if err := v.disk.Mkdir("objects"); err != nil {
		return err
	}
	v.m = newManifest()
	v.m.gen, v.m.head = 1, 1
	v.num = logFile{num: 1, epoch: v.header.Epoch}
	if v.header.Mode == modeKernel {
		if err := v.formatKernel(ctx); err != nil {
			return err
		}
	}
	if v.log, err = writeLog(v.disk, v.header, v.num, v.keys[v.header.Epoch], v.m); err != nil {
		return err
	}
	if err := v.header.seal(v.keys[v.header.Epoch], v.private); err != nil {
		return err
	}
	if err := writeHeader(v.disk, v.header); err != nil {
		return err
	}
	return v.witness(ctx)
}

// makeSlots wraps the volume key for each protector.
func makeSlots(ctx context.Context, h *header, vk *Secret, n *notes, protectors []Protector) ([]Slot, error) {
	if len(protectors) == 0 || len(protectors) > maxSlots {
		return nil, fmt.Errorf("%d protectors, want 1 to %d", len(protectors), maxSlots)
	}
	var slots []Slot
	for _, p := range protectors {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s, err := p.Wrap(ctx, vk, Binding{Volume: h.UUID, Label: h.Label, Slot: newObjectID(), notes: n})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.Type(), err)
		}
		slots = append(slots, s)
	}
	return slots, nil
}

func openOn(ctx context.Context, dir string, d disk.FS, cfg Config, protectors []Protector) (_ *Volume, err error) {
	v := newVolume(dir, d, cfg, protectors)
	n := new(notes)
	defer func() {
		if err != nil {
			err = errors.Join(err, closeLatches(n, refusedLatch[:]), v.abandon())
			v.event(ctx, slog.LevelWarn, "fscrypt.refused", slog.String("reason", err.Error()))
		}
	}()
	headers, err := readHeaders(d)
	if err != nil {
		return nil, err
	}
	for i, h := range headers {
		var e error
		if e = v.unlock(ctx, h, cfg, n, protectors); e == nil {
			err = nil
			break
		}
		err = errors.Join(err, e)
		if i == len(headers)-1 || final(e) {
			return nil, err
		}
	}
	if err := v.setLatch(); err != nil {
		return nil, err
	}
	v.latched = len(n.latches) > 0
	if err := closeLatches(n, v.latch); err != nil {
		return nil, fmt.Errorf("close the latch: %w", err)
	}
	if err := v.load(ctx, len(headers) > 1); err != nil {
		return nil, err
	}
	if n.lease != nil {
		v.startLease(n.lease)
	}
	v.event(ctx, slog.LevelInfo, "fscrypt.opened", slog.String("slot", v.slot))
	return v, nil
}

// final reports an error that the other copy of the header would only repeat.
func final(err error) bool {
	return slices.ContainsFunc([]error{ErrAuth, ErrLockout, ErrUnavailable, ErrRefused, ErrTPMChanged}, func(e error) bool { return errors.Is(err, e) })
}

// unlock finds a slot that one of the protectors opens, and authenticates the
// header with what it held.
func (v *Volume) unlock(ctx context.Context, h *header, cfg Config, n *notes, protectors []Protector) error {
	if cfg.Label != "" && cfg.Label != h.Label {
		return fmt.Errorf("volume is %q, not %q: %w", h.Label, cfg.Label, ErrWrongVolume)
	}
	var errs []error
	for _, p := range protectors {
		for _, s := range h.Slots {
			if s.Type != p.Type() {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			n.lease = nil
			vk, err := p.Unwrap(ctx, s, Binding{Volume: h.UUID, Label: h.Label, Slot: s.ID, notes: n})
			if err == nil {
				var priv *private
				if priv, err = h.open(vk); err == nil {
					v.slot = s.Type
					return v.adopt(h, priv, vk)
				}
				vk.Erase()
			}
			errs = append(errs, fmt.Errorf("%s: %w", s.Type, err))
			if errors.Is(err, ErrAuth) && len(tpmsOf(p)) > 0 {
				break // another try would use up the TPM's patience
			}
		}
	}
	if errs == nil {
		return ErrNoSlot
	}
	return errors.Join(errs...)
}

// adopt takes over an authenticated header.
func (v *Volume) adopt(h *header, priv *private, vk *Secret) (err error) {
	v.header, v.private = h, priv
	v.keys = map[uint64]*Secret{h.Epoch: vk}
	for _, o := range priv.Old {
		if v.keys[o.Epoch], err = NewSecret(slices.Clone(o.Key)); err != nil {
			return err
		}
	}
	v.stable, err = NewSecret(slices.Clone(priv.Stable))
	return err
}

// load reads the manifest, checks that it is the newest, and tidies up after a
// cut.
func (v *Volume) load(ctx context.Context, repair bool) error {
	logs, rest, err := findLogs(v.disk)
	if err != nil {
		return err
	}
	if len(logs) == 0 {
		return fmt.Errorf("the manifest is gone: %w", ErrTampered)
	}
	v.num = logs[len(logs)-1]
	vk := v.keys[v.num.epoch]
	if vk == nil {
		return fmt.Errorf("manifest %s is under a key that the header does not know: %w", v.num.name(), ErrTampered)
	}
	if v.m, v.log, err = loadLog(v.disk, v.header, v.num, vk); err != nil {
		return err
	}
	if v.header.Generation < v.m.head {
		return fmt.Errorf("header has generation %d, the manifest knows %d: %w", v.header.Generation, v.m.head, ErrRollback)
	}
	if err := v.verifyFresh(ctx); err != nil {
		return err
	}
	if v.header.Mode == modeKernel {
		if err := v.openKernel(ctx); err != nil {
			return err
		}
	}
	for _, l := range logs[:len(logs)-1] {
		rest = append(rest, l.name())
	}
	for _, name := range rest {
		if err := v.disk.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if repair {
		if err := writeHeader(v.disk, v.header); err != nil {
			return err
		}
	}
	if err := v.removeOrphans(); err != nil {
		return err
	}
	return v.checkpoint(ctx)
}

// removeOrphans deletes objects that no file names: of writes that were cut
// off, and of files replaced or removed.
func (v *Volume) removeOrphans() error {
	names, err := v.disk.List("objects")
	if err != nil {
		return err
	}
	used := v.m.objects()
	for _, n := range names {
		if !used[n] {
			if err := v.disk.Remove("objects/" + n); err != nil {
				return err
			}
		}
	}
	return nil
}

func (v *Volume) setLatch() error {
	key, err := derive(v.stable, 32, nil, "latch")
	if err != nil {
		return err
	}
	defer clear(key)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("fscrypt:" + v.header.Label + ":" + v.header.UUID))
	v.latch = mac.Sum(nil)
	return nil
}

// Latch returns what the latch PCR is extended with when this volume is
// opened, for the TPM.After of volumes that are opened later in each boot. It
// is not secret, and stays the same for the life of the volume.
func (v *Volume) Latch() []byte { return slices.Clone(v.latch) }

// closeLatches extends the latch PCRs that attempts to open have left open.
func closeLatches(n *notes, digest []byte) error {
	var errs []error
	for _, l := range n.latches {
		errs = append(errs, l(digest))
	}
	n.latches = nil
	return errors.Join(errs...)
}

// abandon lets go of a volume that did not come to be open.
func (v *Volume) abandon() error {
	v.erase(ErrLocked)
	v.dropKernelKey()
	if v.log == nil {
		return nil
	}
	log := v.log
	v.log = nil
	return log.Close()
}

// erase forgets every key.
func (v *Volume) erase(why error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.locked == nil {
		v.locked = why
	}
	for _, k := range v.keys {
		k.Erase()
	}
	v.stable.Erase()
	if v.private != nil {
		v.private.erase()
	}
	v.cache.clear()
	if v.timer != nil {
		v.timer.Stop()
	}
}

// usable returns why the volume can't be used.
func (v *Volume) usable() error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.locked
}

func (v *Volume) event(ctx context.Context, level slog.Level, event string, attrs ...slog.Attr) {
	if v.header != nil {
		attrs = append(attrs, slog.String("volume", v.header.UUID), slog.String("label", v.header.Label))
	}
	v.logger.LogAttrs(ctx, level, event, append(attrs, slog.String("event", event))...)
}

// Lock writes a checkpoint, erases the keys and closes the volume. While files
// or writers are open it returns a *BusyError and nothing is locked. In kernel
// mode it polls until the kernel has dropped the key, or ctx is done.
func (v *Volume) Lock(ctx context.Context) (err error) {
	defer boundary("lock "+v.dir, &err)
	v.wmu.Lock()
	defer v.wmu.Unlock()
	if v.log == nil {
		return nil
	}
	v.mu.RLock()
	var busy BusyError
	for name, n := range v.open {
		busy.Open += n
		busy.Paths = append(busy.Paths, name)
	}
	v.mu.RUnlock()
	if busy.Open > 0 {
		slices.Sort(busy.Paths)
		busy.Paths = busy.Paths[:min(len(busy.Paths), 16)]
		return &busy
	}
	if v.header.Mode == modeKernel {
		if err := v.lockKernel(ctx); err != nil {
			return err
		}
	}
	var cerr error
	if v.usable() == nil {
		cerr = v.checkpoint(ctx)
	}
	v.erase(ErrLocked)
	err = errors.Join(cerr, v.log.Close(), v.disk.Close())
	v.log = nil
	v.event(ctx, slog.LevelInfo, "fscrypt.locked")
	return err
}

// startLease lets the volume lock itself when its lease ends.
func (v *Volume) startLease(l *lease) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.lease = l
	if v.timer != nil {
		v.timer.Stop()
	}
	v.timer = time.AfterFunc(time.Until(l.until), v.expire)
}

func (v *Volume) expire() {
	v.mu.RLock()
	over := v.lease != nil && !time.Now().Before(v.lease.until)
	v.mu.RUnlock()
	if over {
		v.shut(fmt.Errorf("the lease of the remote share ended: %w", ErrLocked))
	}
}

// shut closes the volume at once, also over open files.
func (v *Volume) shut(why error) {
	v.erase(why)
	v.dropKernelKey()
	v.event(context.Background(), slog.LevelWarn, "fscrypt.lease.ended", slog.String("reason", why.Error()))
}

// RenewLease asks the service for more time. When the service revoked or
// refused the node, the volume shuts at once, over open files; while the
// service can't be reached the old lease runs on. It returns until when the
// lease runs, on this process's monotonic clock.
func (v *Volume) RenewLease(ctx context.Context) (until time.Time, err error) {
	defer boundary("renew lease of "+v.dir, &err)
	v.mu.RLock()
	l, locked := v.lease, v.locked
	v.mu.RUnlock()
	if locked != nil {
		return time.Time{}, locked
	}
	if l == nil {
		return time.Time{}, errors.New("volume was opened without a remote share")
	}
	until, err = l.renew(ctx)
	if errors.Is(err, ErrRevoked) || errors.Is(err, ErrRefused) {
		v.shut(fmt.Errorf("%w: %w", ErrLocked, err))
		return time.Time{}, err
	}
	if err != nil {
		return l.until, err
	}
	v.startLease(&lease{until: until, renew: l.renew})
	return until, nil
}

// Status describes an open volume.
type Status struct {
	Volume     string        `json:"volume"` // UUID
	Label      string        `json:"label"`
	Mode       string        `json:"mode"` // "portable" or "kernel"
	Locked     bool          `json:"locked"`
	Slot       string        `json:"slot"` // type of the slot that opened it
	Slots      []SlotStatus  `json:"slots"`
	Generation uint64        `json:"generation"`
	Freshness  string        `json:"freshness"` // "witnessed", "unchecked" (no TPM given) or "none"
	Files      int           `json:"files"`
	Open       int           `json:"open"`     // open files and writers
	Rotating   bool          `json:"rotating"` // old volume keys are still in use: Rotate again
	LeaseUntil time.Time     `json:"lease_until,omitzero"`
	Kernel     *KernelStatus `json:"kernel,omitempty"`
}

// SlotStatus names a slot.
type SlotStatus struct {
	ID   string `json:"id"`
	Type string `json:"type"`
}

// Status reports the volume's state. It does not fail on a locked volume.
func (v *Volume) Status() Status {
	v.mu.RLock()
	defer v.mu.RUnlock()
	s := Status{
		Volume: v.header.UUID, Label: v.header.Label, Mode: v.header.Mode, Locked: v.locked != nil, Slot: v.slot,
		Generation: v.m.gen, Files: len(v.m.files), Rotating: len(v.private.Old) > 0, Freshness: v.freshness(),
	}
	for _, sl := range v.header.Slots {
		s.Slots = append(s.Slots, SlotStatus{sl.ID, sl.Type})
	}
	for n := range maps.Values(v.open) {
		s.Open += n
	}
	if v.lease != nil {
		s.LeaseUntil = v.lease.until
	}
	if v.header.Mode == modeKernel {
		s.Kernel = v.kernelStatus()
	}
	return s
}
