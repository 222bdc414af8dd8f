package softtpm

import (
	"crypto/fips140"
	"crypto/rand"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Config says what kind of TPM to make. Its zero value is a TPM in memory with
// random seeds and no endorsement certificate.
type Config struct {
	// Seed, when not empty, makes the primary seeds: TPMs with one seed have the
	// same primary keys. When empty the seeds are random.
	Seed []byte
	// Rand is the source of everything random except signature nonces; nil
	// means crypto/rand.
	Rand io.Reader
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Dir, when not empty, is a directory in which the state is kept: what a
	// real TPM keeps in its non-volatile memory. A TPM whose state is there
	// already is opened instead of made.
	Dir string
	// Maker, when not nil, issues the endorsement certificates.
	Maker *Maker
	// Trace, when not nil, is told of everything that happens, secrets
	// included. It must not call the TPM.
	Trace func(Step)
}

// ErrPowerOff says that a command was sent to a TPM that has no power.
var ErrPowerOff = errors.New("softtpm: power is off")

// TPM is one software TPM 2.0. It is safe for concurrent use: it executes one
// command at a time, as a TPM does.
type TPM struct {
	mu  sync.Mutex
	cfg Config

	nonVolatile
	volatile

	dirty  bool // nonVolatile has changed since it was saved
	failed bool // failure mode: until the power is cycled only that is told
	rsa    rsaCache

	clients atomic.Uint64 // counts the connections that Serve had
}

// nonVolatile is what survives the loss of power.
type nonVolatile struct {
	seeds      map[uint32][]byte // primary seeds of owner, endorsement, platform
	proofs     map[uint32][]byte
	auths      map[uint32][]byte // authorisation values of owner, endorsement, lockout
	policies   map[uint32]authPolicy
	persistent map[uint32]*object
	nv         map[uint32]*nvIndex
	maxCount   uint64 // largest value that a deleted counter ever had

	clockMs      uint64 // value of clock when the power last went, or was saved
	clockSafe    bool   // the clock has not gone back
	resetCount   uint32
	restartCount uint32
	shutdown     int // how the TPM was shut down: one of shutdownNone, Clear, State
	saved        *resumable
	daUsed       bool // a protected secret was tried since startup
	disableClear bool
	da           lockout
}

type authPolicy struct {
	alg    uint16
	digest []byte
}

// resumable is what TPM2_Shutdown(STATE) keeps for TPM2_Startup(STATE).
type resumable struct {
	pcrs         map[uint16]*[pcrCount][]byte
	pcrUpdates   uint32
	platformAuth []byte
	nullSeed     []byte
	nullProof    []byte
	contexts     uint64
	enabled      map[uint32]bool
	locality3    bool              // the TPM was started at locality 3
	sessions     map[uint32]uint64 // sequence numbers of saved sessions
}

// volatile is what the loss of power erases.
type volatile struct {
	powered bool
	started bool
	// startedAt3 says that the TPM was started at locality 3.
	startedAt3 bool
	locality   int    // of the command that is executed
	client     uint64 // who sent it
	poweredAt  time.Time
	epoch      uint64          // random; what was timed before does not hold after
	clockBase  uint64          // clock when the power came
	enabled    map[uint32]bool // hierarchies (owner, endorsement, platform, platform NV)

	platformAuth []byte
	nullSeed     []byte
	nullProof    []byte

	pcrs       map[uint16]*[pcrCount][]byte
	pcrUpdates uint32

	objs      map[uint32]*object
	borrowed  int // transient slots that the command's persistent objects take
	sessions  map[uint32]*session
	saved     map[uint32]*savedSession
	contexts  uint64 // sequence number of the context saved last
	exclusive uint32 // exclusive audit session, or 0
	daFailed  time.Time
	lockedAt  time.Time
}

// New makes a TPM, or opens the one whose state is in Config.Dir. It has power,
// and waits for TPM2_Startup.
func New(cfg Config) (t *TPM, err error) {
	fips140.WithoutEnforcement(func() { t, err = newTPM(cfg) })
	return t, err
}

func newTPM(cfg Config) (*TPM, error) {
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	t := &TPM{cfg: cfg}
	loaded, err := t.load()
	if err != nil {
		return nil, err
	}
	if !loaded {
		t.manufacture()
		if err := t.provision(); err != nil {
			return nil, err
		}
	} else if cfg.Maker == nil {
		t.forgetFactory()
	}
	if t.dirty {
		if err := t.save(); err != nil {
			return nil, err
		}
	}
	t.PowerOn()
	return t, nil
}

// manufacture sets the state in which a TPM leaves its factory.
func (t *TPM) manufacture() {
	seed := func(label string) []byte {
		if len(t.cfg.Seed) == 0 {
			return t.random(64)
		}
		return kdfa(algSHA512, t.cfg.Seed, label, nil, nil, 512)
	}
	t.nonVolatile = nonVolatile{
		seeds:      map[uint32][]byte{rhOwner: seed("SPS"), rhEndorsement: seed("EPS"), rhPlatform: seed("PPS")},
		proofs:     map[uint32][]byte{rhOwner: seed("SHPROOF"), rhEndorsement: seed("EHPROOF"), rhPlatform: seed("PHPROOF")},
		auths:      map[uint32][]byte{},
		policies:   map[uint32]authPolicy{},
		persistent: map[uint32]*object{},
		nv:         map[uint32]*nvIndex{},
		da:         newLockout(),
		shutdown:   shutdownClear,
		clockSafe:  true,
	}
	t.dirty = true
}

// PowerOn gives the TPM power: it then waits for TPM2_Startup. It does nothing
// when the power is on.
func (t *TPM) PowerOn() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.powered {
		return
	}
	t.volatile = volatile{powered: true, poweredAt: t.cfg.Now(), clockBase: t.clockMs}
	t.failed = false
	t.traceEvent(Step{Event: "on", NV: t.factoryIndices()})
}

// PowerOff takes the power away, at once and without TPM2_Shutdown: what was
// not stored is lost.
func (t *TPM) PowerOff() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.powered {
		t.traceEvent(Step{Event: "off"})
	}
	t.volatile = volatile{}
}

// Powered reports whether the TPM has power.
func (t *TPM) Powered() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.powered
}

// Send executes one command at locality 0. It implements go-tpm's
// transport.TPM.
func (t *TPM) Send(command []byte) ([]byte, error) { return t.SendAt(0, command) }

// SendAt executes one command at a locality, 0 to 4. What the command changed
// for good is stored before SendAt returns.
func (t *TPM) SendAt(locality int, command []byte) ([]byte, error) {
	return t.send(0, locality, command)
}

// send executes a command of a client of Serve, or of client 0. What a chip
// computes is no business of this process's FIPS 140-3 mode.
func (t *TPM) send(client uint64, locality int, command []byte) (rsp []byte, err error) {
	fips140.WithoutEnforcement(func() { rsp, err = t.sendLocked(client, locality, command) })
	return rsp, err
}

func (t *TPM) sendLocked(client uint64, locality int, command []byte) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.powered {
		return nil, ErrPowerOff
	}
	if locality < 0 || locality > 4 {
		return nil, errors.New("softtpm: locality out of range 0 to 4")
	}
	t.volatile.locality, t.client = locality, client
	rsp := t.execute(command)
	t.tick()
	if t.dirty {
		if err := t.save(); err != nil {
			t.failed = true
			return errorResponse(stNoSessions, rcFailure), nil
		}
	}
	return rsp, nil
}

// release flushes what a client of Serve has left loaded.
func (t *TPM) release(client uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for h, o := range t.objs {
		if o.client == client {
			delete(t.objs, h)
			t.traceEvent(Step{Event: "flush", Handle: h})
		}
	}
	for h, s := range t.sessions {
		if s.client == client {
			t.dropSession(h)
			t.traceEvent(Step{Event: "flush", Handle: h})
		}
	}
}

// clockStep is how often the clock is written down, in milliseconds: a TPM
// that loses power goes back by less than this.
const clockStep = 4096

func (t *TPM) uptime() uint64 {
	return uint64(max(0, t.cfg.Now().Sub(t.poweredAt).Milliseconds()))
}

func (t *TPM) clock() uint64 { return t.clockBase + t.uptime() }

func (t *TPM) tick() {
	if now := t.clock(); t.started && now/clockStep > t.clockMs/clockStep {
		t.clockMs = now
		t.clockSafe = true
		t.dirty = true
	}
}
