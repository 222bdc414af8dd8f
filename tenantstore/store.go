package tenantstore

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/trusttree/trusttree/internal/durable"
	"github.com/trusttree/trusttree/tenantstore/engine"
	"github.com/trusttree/trusttree/tenantstore/internal/auditlog"
	"github.com/trusttree/trusttree/tenantstore/internal/sqlite"
)

// Config is what a Store needs. Dir, Keys, Owners and Roots are required.
type Config struct {
	// Name is what assignments and the audit log call this store: 1 to 128 of
	// a-z, A-Z, 0-9, '-', '_', '.'. Empty means "trusttree".
	Name string
	// Dir is the state directory, made with mode 0700. One process uses it.
	Dir string
	// Keys wraps the tenants' keys, and the system instance's.
	Keys KeyProvider
	// MoreKeys are providers that a tenant can be created with by name
	// (Spec.Keys), for tenants who bring or hold their own key.
	MoreKeys map[string]KeyProvider
	// Owners are the keys that sign assignments (Ed25519, ECDSA P-256).
	Owners []crypto.PublicKey
	// Roots are the issuers of client certificates.
	Roots *x509.CertPool
	// Admit, if set, is asked about each client certificate that verified:
	// revocation, attestation. An error denies.
	Admit func(ctx context.Context, leaf *x509.Certificate) error
	// Region is where the embedded engine keeps its files. Empty means "local".
	Region string
	// Placement are further engines and the region each is in.
	Placement []Placement
	// System names the engine of the system instance when the store is new.
	// Empty means "embedded".
	System string
	// Instance names this process among several that share the system instance
	// on a shared engine, each with a Dir of its own and a copy of store.json.
	// Its audit log is a log of its own, NAME/audit/INSTANCE, and so is its
	// audit key. Two processes must not use one name, and their tenants belong
	// on shared engines.
	Instance string
	// Witnesses are the verifier keys of the witnesses whose cosignatures
	// Store.Cosign accepts: NAME+HASH+KEY, signature type 4 (C2SP
	// tlog-cosignature).
	Witnesses []string
	// Quota is for what a tenant's own leaves at zero.
	Quota Quota
	// MaxOpen is how many instances are open at once; 0 means 256. Each takes
	// two file descriptors and about 0.4 MiB.
	MaxOpen int
	// KeyTTL is how long a tenant's unwrapped key is used before the provider
	// is asked again, and so how long a revoked key works at most; 0 means 60 s.
	KeyTTL time.Duration
	// Clock is time.Now when nil.
	Clock func() time.Time
	// Logger gets security events, each with an "event" name and no secret;
	// nil discards them.
	Logger *slog.Logger
}

// Placement is an engine and the region that its instances are in.
type Placement struct {
	Region string
	Engine engine.Engine
}

const (
	defaultMaxOpen = 256
	defaultKeyTTL  = time.Minute
	keyTimeout     = 10 * time.Second // for one call of a key provider
	maxBootstrap   = 64 << 10
)

// Store is the tenants' persistence. It is safe for concurrent use.
type Store struct {
	cfg      Config
	uid      UID
	lock     *os.File
	engines  map[string]Placement
	sys      *instance
	audit    *auditor
	auditKey string
	signer   note.Signer

	witnesses []note.Verifier

	control     controls
	assigning   mutex    // serialises Assign
	cut         sync.Map // UID to the pending key of a copy that this process stopped
	assigned    atomic.Pointer[verifiedAssignments]
	cache       *cache
	lastVersion atomic.Uint64
	shared      bool         // other processes use the system instance too
	polled      atomic.Int64 // when refresh last asked, in nanoseconds
	woken       atomic.Int64 // when another process last said that something changed

	scratches sync.Pool // of *scratch

	stopListening func() // nil where nobody can wake us
	stopResuming  func() // nil where nothing was interrupted
	closed        atomic.Bool
}

// Open opens the store in Config.Dir, or makes it. It finishes what a crash
// interrupted, and returns ErrTampered when the audit log or the system
// instance is not what it was, ErrBusy when another process has the store.
func Open(ctx context.Context, cfg Config) (_ *Store, err error) {
	defer func() { err = boundary(ctx, "open store", err) }()
	if err := cfg.defaults(); err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, cache: newCache(cfg.MaxOpen), assigning: newMutex(), scratches: sync.Pool{New: func() any { return new(scratch) }}, engines: map[string]Placement{}}
	if err := durable.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	if s.lock, err = lockDir(filepath.Join(cfg.Dir, "lock")); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.closeAll(ctx))
		}
	}()
	for _, k := range cfg.Witnesses {
		w, err := auditlog.NewWitness(k)
		if err != nil {
			return nil, fmt.Errorf("%w: Config.Witnesses: %q: %w", ErrInvalid, clip(k), err)
		}
		s.witnesses = append(s.witnesses, w)
	}
	embedded, err := sqlite.New(filepath.Join(cfg.Dir, "instances"))
	if err != nil {
		return nil, err
	}
	for _, p := range append([]Placement{{cfg.Region, embedded}}, cfg.Placement...) {
		if p.Engine == nil || checkName(p.Engine.Name()) != nil || checkName(p.Region) != nil {
			return nil, fmt.Errorf("%w: placement needs an engine with a name and a region", ErrInvalid)
		}
		if _, ok := s.engines[p.Engine.Name()]; ok {
			return nil, fmt.Errorf("%w: two engines are named %q", ErrInvalid, p.Engine.Name())
		}
		s.engines[p.Engine.Name()] = p
	}
	if err := s.openSystem(ctx); err != nil {
		return nil, err
	}
	if err := s.loadAssignments(ctx); err != nil {
		return nil, err
	}
	if s.shared { // see Recover
		if l, ok := s.sys.db.(engine.Listener); ok {
			s.listen(l)
		}
		return s, nil
	}
	unfinished, err := s.recover(ctx)
	if err == nil && len(unfinished) > 0 {
		s.resume(unfinished)
	}
	return s, err
}

func (c *Config) defaults() error {
	if c.Name == "" {
		c.Name = "trusttree"
	}
	if c.Region == "" {
		c.Region = "local"
	}
	if c.System == "" {
		c.System = "embedded"
	}
	if c.MaxOpen <= 0 {
		c.MaxOpen = defaultMaxOpen
	}
	if c.KeyTTL <= 0 {
		c.KeyTTL = defaultKeyTTL
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.Dir == "":
		return fmt.Errorf("%w: Config.Dir is empty", ErrInvalid)
	case c.Keys == nil:
		return fmt.Errorf("%w: Config.Keys is nil", ErrInvalid)
	case len(c.Owners) == 0:
		return fmt.Errorf("%w: Config.Owners is empty: nobody could assign tenants", ErrInvalid)
	case c.Roots == nil:
		return fmt.Errorf("%w: Config.Roots is nil: nobody could authenticate", ErrInvalid)
	}
	if c.Instance != "" {
		if err := checkName(c.Instance); err != nil {
			return err
		}
	}
	return checkName(c.Name)
}

// useSystem opens the system instance and, with a key that lasts as long as it
// does, the audit log.
func (s *Store) useSystem(ctx context.Context, boot bootstrap) error {
	e := boot.entry()
	e.Region = s.engines[e.Engine].Region
	e.Quota = Quota{OpsPerSec: 1 << 20}
	sec, err := s.unwrap(ctx, e)
	if err != nil {
		return fmt.Errorf("system instance: %w", err)
	}
	defer sec.zero()
	sys, err := s.openInstance(ctx, e, sec)
	if err != nil {
		return fmt.Errorf("system instance: %w", err)
	}
	s.sys, s.shared = sys, s.engines[e.Engine].Engine.Shared()
	lasting := engine.Ref{UID: e.UID}
	purpose := "audit signer"
	if s.cfg.Instance != "" {
		purpose += " " + s.cfg.Instance
	}
	seed, err := subkey(sec.lasting(), purpose, s.uid, lasting)
	if err != nil {
		return err
	}
	defer clear(seed)
	pseud, err := subkey(sec.lasting(), "pseudonyms", s.uid, lasting)
	if err != nil {
		return err
	}
	verifier, err := s.makeSigner(ed25519.NewKeyFromSeed(seed))
	if err != nil {
		return err
	}
	s.audit, err = openAuditor(filepath.Join(s.cfg.Dir, "audit"), s.uid, s.systemTrail(), s.signer, verifier, pseud, s.cfg.Clock, s.cfg.Logger)
	if err != nil {
		return err
	}
	return s.registerLog(ctx)
}

func (s *Store) makeSigner(key ed25519.PrivateKey) (note.Verifier, error) {
	name := s.cfg.Name + "/audit"
	if s.cfg.Instance != "" {
		name += "/" + s.cfg.Instance
	}
	pub := key.Public().(ed25519.PublicKey)
	h := sha256.Sum256(append([]byte(name+"\n\x01"), pub...))
	s.signer = &noteSigner{name: name, hash: binary.BigEndian.Uint32(h[:]), key: key}
	var err error
	if s.auditKey, err = note.NewEd25519VerifierKey(name, pub); err != nil {
		return nil, err
	}
	return note.NewVerifier(s.auditKey)
}

// noteSigner is a note.Signer whose key never is text.
type noteSigner struct {
	name string
	hash uint32
	key  ed25519.PrivateKey
}

func (n *noteSigner) Name() string    { return n.name }
func (n *noteSigner) KeyHash() uint32 { return n.hash }
func (n *noteSigner) Sign(msg []byte) ([]byte, error) {
	return n.key.Sign(rand.Reader, msg, crypto.Hash(0))
}

func (s *Store) loadAssignments(ctx context.Context) error {
	signed, err := s.loadState(ctx, assignmentsKey)
	if err != nil {
		return err
	}
	if signed == nil {
		if s.audit.serial > 0 {
			return fmt.Errorf("system instance: %w: assignments %d were in force, none are there", ErrRollback, s.audit.serial)
		}
		return nil
	}
	v, err := verifyAssignments(signed, s.cfg.Owners, s.cfg.Name)
	if err != nil {
		s.cfg.Logger.WarnContext(ctx, "stored assignments don't verify: everybody is denied until new ones come",
			"event", "tenantstore.assignments_refused", "error", err)
		return nil
	}
	if v.serial < s.audit.serial {
		return fmt.Errorf("system instance: %w: assignments %d were in force, it has %d", ErrRollback, s.audit.serial, v.serial)
	}
	s.assigned.Store(v)
	return nil
}

// System returns the reserved instance for the registries of the process that
// opened the store: devices, challenges, whatever belongs to no tenant. The
// store's own records in it are out of reach. Nothing that a peer sends leads
// here.
func (s *Store) System() *Tenant {
	return &Tenant{s: s, p: Principal{store: s, subject: "service", local: true}, uid: s.sys.uid}
}

func (s *Store) systemTrail() trail { return s.sys.trail() }

// deny puts a refusal into the audit log and returns the error that every
// refusal is, after the same work whatever the reason. When the log fails, that comes on top.
func (s *Store) deny(ctx context.Context, p Principal, action string, reason error) error {
	err := s.audit.refusal(ctx, s.systemTrail(), Event{Action: action, Outcome: "denied", Subject: p.subject, Stream: p.stream,
		Tenant: p.tenant, Detail: reason.Error()})
	return errors.Join(ErrDenied, err)
}

// Close writes what is pending and closes every instance; it waits for
// operations under way until ctx is done.
func (s *Store) Close(ctx context.Context) error {
	if s.closed.Swap(true) {
		return nil
	}
	return boundary(ctx, "close store", s.closeAll(ctx))
}

func (s *Store) closeAll(ctx context.Context) error {
	if s.stopListening != nil {
		s.stopListening()
	}
	if s.stopResuming != nil {
		s.stopResuming()
	}
	err := s.cache.close(ctx)
	if s.audit != nil && s.audit.log != nil {
		err = errors.Join(err, s.audit.close())
	}
	if s.sys != nil {
		err = errors.Join(err, s.sys.db.Close())
	}
	if p, ok := s.engines["embedded"]; ok {
		err = errors.Join(err, p.Engine.Close())
	}
	return errors.Join(err, s.lock.Close())
}

func keyName(uid UID, n int64) string { return fmt.Sprintf("%v-%d", uid, n) }

func readCapped(name string, limit int64) ([]byte, error) {
	fi, err := os.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > limit {
		return nil, fmt.Errorf("%s: %w: no regular file of at most %d bytes", name, ErrInvalid, limit)
	}
	return os.ReadFile(name)
}

// provider returns the key provider of an entry. There is no default behind it.
func (s *Store) provider(name string) (KeyProvider, error) {
	if name == "" {
		return s.cfg.Keys, nil
	}
	p, ok := s.cfg.MoreKeys[name]
	if !ok || p == nil {
		return nil, fmt.Errorf("%w: no key provider %q is configured", ErrKeyUnavailable, strings.ToValidUTF8(clip(name), "?"))
	}
	return p, nil
}
