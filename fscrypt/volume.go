package fscrypt

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/trusttree/trusttree/fscrypt/internal/disk"
	"github.com/trusttree/trusttree/fscrypt/internal/journal"
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
	open    map[string]int  // open files and writers by name
	writers map[uint64]int  // by the volume key they write under
	active  map[string]bool // segments that are being written
	locked  error           // why the volume is closed, nil while it is open
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
	packLater int    // more bytes to wait for since packing failed; guarded by wmu
	counter   *TPM   // nil where no TPM was given
	witnessed uint64 // the counter's value last seen
	cache     *chunkCache
}

func newVolume(dir string, d disk.FS, cfg Config, protectors []Protector) *Volume {
	v := &Volume{dir: dir, disk: d, logger: cfg.Logger, open: map[string]int{}, writers: map[uint64]int{}, active: map[string]bool{}, rotating: make(chan struct{}, 1), keys: map[uint64]*Secret{}, keeps: map[*Keep]bool{}, cache: newChunkCache(cfg.CacheBytes), given: protectors, progress: cfg.Progress, pad: cfg.PadSizes, maxLogged: maxLogged}
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
