package fscrypt

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
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
	// Latch is what Volume.Latch returned after Create: on Open, a volume that
	// has another one is ErrWrongVolume. Keep it outside of this disk, where
	// who holds the disk can't change it, and give it for the first volume
	// opened in a boot: otherwise an attacker could put a volume of his own,
	// sealed to this TPM, in its place. TPM.After does this for later volumes.
	Latch []byte
	// Kernel makes Create encrypt a directory with the kernel (fscrypt policy
	// version 2, on ext4, f2fs or ubifs) instead of the portable format: any
	// program reads and writes below Volume.Path, at the kernel's speed, but
	// nothing authenticates contents but of files given to Volume.Protect, and
	// Checkpoint witnesses only these and the header. Needs Linux.
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
	// Progress is called by Rotate after each file; in kernel mode a file with
	// several names counts once. Nil means none.
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

	rotating chan struct{} // full while Rotate runs

	wmu sync.Mutex // held by whoever changes the log or the header
	log *journal.Log
	num logFile

	mu      sync.RWMutex
	header  *header
	private *private
	stable  *Secret
	tree    *tree // of a kernel mode volume
	// detached: the kernel keeps the key for other programs.
	detached bool
	treeKey  *Secret // nil where the stable secret still is the tree's
	moving   bool    // Rotate has the tree for itself

	kernelMode bool // never changes

	keys    map[uint64]*Secret // volume keys by epoch
	m       *manifest
	open    map[string]int // open files and writers by name
	writers map[uint64]int // by the volume key they write under
	locked  error          // why the volume is closed, nil while it is open
	lease   *lease
	timer   *time.Timer
	latch   []byte
	latched bool   // the latch was extended with it; guarded by wmu
	slot    string // that opened the volume

	given     []Protector // by Create, Open or Rotate
	keeps     map[*Keep]bool
	progress  func(done, total int)
	pad       bool
	maxLogged int
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
	v := &Volume{dir: dir, disk: d, logger: cfg.Logger, open: map[string]int{}, writers: map[uint64]int{}, rotating: make(chan struct{}, 1), keys: map[uint64]*Secret{}, keeps: map[*Keep]bool{}, cache: newChunkCache(cfg.CacheBytes), given: protectors, progress: cfg.Progress, pad: cfg.PadSizes, maxLogged: maxLogged}
	if v.logger == nil {
		v.logger = slog.New(slog.DiscardHandler)
	}
	v.useKeeps(protectors)
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
	v.kernelMode = mode == modeKernel
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
	if n.lease != nil {
		v.startLease(n.lease)
	}
	v.keepAll(ctx, n)
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
	if v.kernelMode {
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
		var s Slot
		var err error
		erasing(func() {
			s, err = p.Wrap(ctx, vk, Binding{Volume: h.UUID, Label: h.Label, Slot: newObjectID(), notes: n})
			s = s.clone()
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.Type(), err)
		}
		slots = append(slots, s)
	}
	return slots, nil
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
	v.treeKey.Erase()
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
	v.mu.RLock()
	h := v.header
	v.mu.RUnlock()
	if h != nil {
		attrs = append(attrs, slog.String("volume", h.UUID), slog.String("label", h.Label))
	}
	v.logger.LogAttrs(ctx, level, event, append(attrs, slog.String("event", event))...)
}

// Lock writes a checkpoint, erases the keys, also from TPM.Keep, and closes
// the volume. While files or writers are open it returns a *BusyError and
// nothing is locked. In kernel mode it polls until the kernel has dropped the
// key, or ctx is done.
func (v *Volume) Lock(ctx context.Context) (err error) {
	defer boundary("lock "+v.dir, &err)
	v.wmu.Lock()
	defer v.wmu.Unlock()
	if v.log == nil {
		return nil
	}
	if err := v.busy(); err != nil {
		return err
	}
	if v.kernelMode {
		if err := v.lockKernel(ctx); err != nil {
			return err
		}
	}
	v.dropKeeps()
	err = v.leave(ctx)
	v.event(ctx, slog.LevelInfo, "fscrypt.locked")
	return err
}

// Detach is Lock for a process that will be started anew in the same boot: it
// leaves what TPM.Keep holds, and in kernel mode the kernel's key, so that
// other programs go on reading and writing below Path. The next Open with that
// Keep, or with a protector that no latch guards, attaches again. A process
// that is killed leaves the same behind, without the checkpoint.
func (v *Volume) Detach(ctx context.Context) (err error) {
	defer boundary("detach "+v.dir, &err)
	v.wmu.Lock()
	defer v.wmu.Unlock()
	if v.log == nil {
		return nil
	}
	if err := v.busy(); err != nil {
		return err
	}
	v.mu.Lock()
	if v.tree != nil {
		err = v.tree.close()
		v.tree, v.detached = nil, true
	}
	v.mu.Unlock()
	err = errors.Join(err, v.leave(ctx))
	v.event(ctx, slog.LevelInfo, "fscrypt.detached")
	return err
}

// busy returns a *BusyError while files or writers are open.
func (v *Volume) busy() error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var busy BusyError
	if v.moving {
		busy = BusyError{Open: 1, Paths: []string{"Rotate is running"}}
	}
	for name, n := range v.open {
		busy.Open += n
		busy.Paths = append(busy.Paths, name)
	}
	if busy.Open == 0 {
		return nil
	}
	slices.Sort(busy.Paths)
	busy.Paths = busy.Paths[:min(len(busy.Paths), 16)]
	return &busy
}

// leave writes a checkpoint, erases the keys and gives the disk up.
func (v *Volume) leave(ctx context.Context) error {
	var cerr error
	if v.usable() == nil {
		cerr = v.checkpoint(ctx)
	}
	v.erase(ErrLocked)
	err := errors.Join(cerr, v.log.Close(), v.disk.Close())
	v.log = nil
	return err
}
