package update

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/trusttree/trusttree/internal/durable"
)

// ClientConfig configures NewClient. Root, Dir, Images and Floors are required.
type ClientConfig struct {
	// Root is the trusted root that the application embeds: the bytes of any
	// root version that its maker vouches for. Nothing in Dir replaces it.
	Root []byte
	// Dir holds the cache: root.json, timestamp.json, snapshot.json,
	// targets.json, delegated roles, root_history and a lock.
	Dir string
	// Images is the repository of who makes the software.
	Images Source
	// DirectorRoot and Director are root and source of a second repository,
	// whose owner says which node installs which release. With a director,
	// nothing is installed unless both agree.
	DirectorRoot []byte
	Director     Source
	// Floors keeps the floors: TPMFloors, or FileFloors as a visible choice.
	Floors FloorStore
	// Now is the clock; nil means time.Now. The effective time is the latest
	// of the clock, BuildTime and the time floor.
	Now       func() time.Time
	BuildTime time.Time
	// OfflineGrace is how long after their expiry timestamp and snapshot are
	// still accepted: a policy for nodes that are updated from a stick which
	// lay in a drawer. The root must allow it (repository.Config.OfflineGrace)
	// and caps it; zero means not at all. Everything else expires as ever.
	// While it lasts, who withholds newer sticks holds the node back.
	OfflineGrace time.Duration
	// Limits bound what a repository may cost; zero fields take defaults.
	Limits Limits
	// Logger receives security events; nil means none.
	Logger *slog.Logger
}

// Client follows one repository of images and, where there is one, a director.
// It is safe for concurrent use: operations wait for each other.
type Client struct {
	cfg      ClientConfig
	images   *repo
	director *repo
	lock     chan struct{} // capacity 1; full while an operation runs

	// What follows belongs to the holder of lock.
	now          time.Time
	trust        *trusted
	directed     *trusted
	loadedFloors Floors
}

// NewClient checks the configuration and the embedded roots.
func NewClient(cfg ClientConfig) (*Client, error) {
	switch {
	case len(cfg.Root) == 0:
		return nil, errors.New("update: ClientConfig.Root is empty: embed the root of the repository you trust")
	case cfg.Dir == "":
		return nil, errors.New("update: ClientConfig.Dir is empty")
	case cfg.Images == nil:
		return nil, errors.New("update: ClientConfig.Images is nil")
	case cfg.Floors == nil:
		return nil, errors.New("update: ClientConfig.Floors is nil: use TPMFloors, or FileFloors where there is no TPM")
	case (cfg.Director == nil) != (len(cfg.DirectorRoot) == 0):
		return nil, errors.New("update: ClientConfig.Director and DirectorRoot go together")
	case cfg.OfflineGrace < 0:
		return nil, errors.New("update: ClientConfig.OfflineGrace is negative")
	}
	if err := cfg.Limits.check(); err != nil {
		return nil, err
	}
	cfg.Limits = cfg.Limits.withDefaults()
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Client{cfg: cfg, lock: make(chan struct{}, 1)}
	c.images = &repo{name: "images", root: cfg.Root, dir: cfg.Dir, src: cfg.Images, limits: cfg.Limits, log: cfg.Logger, grace: cfg.OfflineGrace}
	if _, err := c.images.openRoot(); err != nil {
		return nil, err
	}
	if cfg.Director != nil {
		c.director = &repo{name: "director", root: cfg.DirectorRoot, dir: filepath.Join(cfg.Dir, "director"), src: cfg.Director, limits: cfg.Limits, log: cfg.Logger, grace: cfg.OfflineGrace}
		if _, err := c.director.openRoot(); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// acquire waits for the client and locks its directory against other processes.
func (c *Client) acquire(ctx context.Context) (release func(), err error) {
	select {
	case c.lock <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("update: wait for the client: %w", context.Cause(ctx))
	}
	if err := durable.MkdirAll(c.cfg.Dir, 0o755); err != nil {
		<-c.lock
		return nil, stateError("cache", err)
	}
	unlock, err := lockFile(filepath.Join(c.cfg.Dir, "lock"))
	if err != nil {
		<-c.lock
		return nil, err
	}
	return func() { unlock(); <-c.lock }, nil
}

// Init writes the embedded root into the cache without asking the network.
func (c *Client) Init(ctx context.Context) error {
	done, err := c.acquire(ctx)
	if err != nil {
		return err
	}
	defer done()
	t, err := c.images.openRoot()
	if err != nil {
		return err
	}
	return c.images.keepRoot(t)
}

// Status says what a refresh has found.
type Status struct {
	// Root, Timestamp, Snapshot and Targets are the trusted versions.
	Root, Timestamp, Snapshot, Targets int64
	// Expires is when the first of these expires: without a refresh that
	// brings newer ones, updates stop then.
	Expires time.Time
	// Time is the effective time, ClockBehind whether the clock was behind it.
	Time        time.Time
	ClockBehind bool
	// Stale says that timestamp or snapshot had expired and OfflineGrace let
	// them through.
	Stale bool
	// Floors are the floors in force, Guard what guards them ("tpm", "software").
	Floors Floors
	Guard  string
}

// Refresh runs the TUF client workflow for both repositories. Call it as often
// as you like. After an error nothing can be selected until a refresh
// succeeds; what runs and what was fetched is untouched. Errors wrap one of
// ErrSignature, ErrRollback, ErrExpired, ErrMixAndMatch, ErrMalformed,
// ErrTooLarge, ErrSlow, ErrRedirect, ErrServer, ErrUnavailable,
// ErrNotInRepository, ErrStateRolledBack, ErrBusy or the context's error.
func (c *Client) Refresh(ctx context.Context) (Status, error) {
	done, err := c.acquire(ctx)
	if err != nil {
		return Status{}, err
	}
	defer done()
	c.trust, c.directed = nil, nil
	st, err := c.refresh(ctx)
	if err != nil {
		c.cfg.Logger.WarnContext(ctx, "refresh failed", "event", "update.refresh.refused", "error", err.Error())
		return Status{}, err
	}
	return st, nil
}

func (c *Client) refresh(ctx context.Context) (Status, error) {
	floors, err := c.cfg.Floors.Load(ctx)
	if err != nil {
		return Status{}, err
	}
	clock := c.cfg.Now()
	now := c.effective(clock, floors)
	trust, err := c.images.refresh(ctx, now, floors.Images)
	if err != nil {
		return Status{}, err
	}
	var directed *trusted
	if c.director != nil {
		if directed, err = c.director.refresh(ctx, now, floors.Director); err != nil {
			return Status{}, err
		}
	}
	c.trust, c.directed, c.loadedFloors, c.now = trust, directed, floors, now
	v := trust.floors()
	st := Status{
		Root: v.Root, Timestamp: v.Timestamp, Snapshot: v.Snapshot, Targets: v.Targets,
		Time: now, ClockBehind: clock.Before(now), Floors: floors, Guard: c.cfg.Floors.Kind(),
		Expires: trust.Root.Signed.Expires,
	}
	st.Stale = trust.stale(now) || directed != nil && directed.stale(now)
	if st.Stale {
		c.cfg.Logger.WarnContext(ctx, "expired metadata accepted offline", "event", "update.offline.stale")
	}
	for _, e := range []time.Time{trust.Timestamp.Signed.Expires, trust.Snapshot.Signed.Expires, trust.Targets[metadata.TARGETS].Signed.Expires} {
		if e.Before(st.Expires) {
			st.Expires = e
		}
	}
	return st, nil
}

// effective is the latest of the clock, the signed time floor and the build
// time, so that a clock at 1970 makes nothing fresh again.
func (c *Client) effective(clock time.Time, floors Floors) time.Time {
	now := clock
	for _, t := range []time.Time{floors.Time, c.cfg.BuildTime} {
		if t.After(now) {
			now = t
		}
	}
	return now.UTC()
}

// current returns the trusted state, if it is there and has not expired since.
// The caller holds the lock.
func (c *Client) current() (*trusted, time.Time, error) {
	if c.trust == nil {
		return nil, time.Time{}, refuse(ErrUnavailable, "client", "no trusted metadata: call Refresh first")
	}
	now := c.effective(c.cfg.Now(), c.loadedFloors)
	for _, t := range []*trusted{c.trust, c.directed} {
		if t == nil {
			continue
		}
		for role, expires := range map[string]time.Time{
			metadata.TIMESTAMP: t.Timestamp.Signed.Expires, metadata.SNAPSHOT: t.Snapshot.Signed.Expires,
			metadata.TARGETS: t.Targets[metadata.TARGETS].Signed.Expires, metadata.ROOT: t.Root.Signed.Expires,
		} {
			if role == metadata.TIMESTAMP || role == metadata.SNAPSHOT {
				expires = expires.Add(t.grace)
			}
			if now.After(expires) {
				return nil, now, t.repo.expired(role, expires, now)
			}
		}
		t.RefTime = now.Add(-t.grace)
	}
	return c.trust, now, nil
}
