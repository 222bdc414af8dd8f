package tenantstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/trusttree/trusttree/internal/durable"
	"github.com/trusttree/trusttree/tenantstore/engine"
)

// bootstrap is the file store.json: what opens the system instance. Version 2;
// version 1 had one key for good.
type bootstrap struct {
	Version    int    `json:"version"`
	Name       string `json:"name"`
	Store      UID    `json:"store"`
	System     UID    `json:"system"`
	Generation uint32 `json:"generation"`
	Engine     string `json:"engine"`
	KeyID      string `json:"key_id"`
	KeyNumber  int64  `json:"key_number,omitempty"` // of the newest key; 0 in version 1 means 1
	Wrapped    []byte `json:"wrapped"`
	// Pending is a key, and an instance where the generation differs, that is
	// not in use: being made, or replaced.
	Pending *pending `json:"pending,omitempty"`
	// Reencrypt is set for the next Open to do it.
	Reencrypt bool `json:"reencrypt,omitempty"`
}

// openSystem opens the system instance by store.json, or makes both.
func (s *Store) openSystem(ctx context.Context) error {
	name := filepath.Join(s.cfg.Dir, "store.json")
	b, err := readCapped(name, maxBootstrap)
	if errors.Is(err, fs.ErrNotExist) {
		return s.initSystem(ctx, name)
	}
	if err != nil {
		return err
	}
	var boot bootstrap
	if err := strictJSON(b, &boot); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if boot.Version != 1 && boot.Version != 2 {
		return fmt.Errorf("%s: %w: version %d, this reader knows 1 and 2", name, ErrInvalid, boot.Version)
	}
	if boot.Name != s.cfg.Name {
		return fmt.Errorf("%s: %w: the store is named %q, not %q", name, ErrInvalid, boot.Name, s.cfg.Name)
	}
	s.uid = boot.Store
	if boot, err = s.settleSystem(ctx, boot); err != nil { // tried again the next time
		s.cfg.Logger.ErrorContext(ctx, "interrupted change of the system key can't be finished now", "event", "tenantstore.recover_failed", "error", err)
	} else if boot.Reencrypt {
		if boot, err = s.reencryptSystem(ctx, boot); err != nil {
			return fmt.Errorf("system instance: re-encrypt: %w", err)
		}
	}
	return s.useSystem(ctx, boot)
}

func (s *Store) initSystem(ctx context.Context, name string) error {
	if _, err := os.Stat(filepath.Join(s.cfg.Dir, "audit", "entries")); err == nil {
		return fmt.Errorf("%s is missing, but the store was used before: %w: restore that file", name, ErrTampered)
	}
	boot := bootstrap{Version: 2, Name: s.cfg.Name, Store: newUID(), System: newUID(), Generation: 1, KeyNumber: 1, Engine: s.cfg.System}
	boot.KeyID = keyName(boot.System, 1)
	p, ok := s.engines[boot.Engine]
	if !ok {
		return fmt.Errorf("%w: no engine is named %q", ErrInvalid, boot.Engine)
	}
	s.uid = boot.Store
	e := boot.entry()
	sec := newSecret(nil)
	defer sec.zero()
	var err error
	if e.Wrapped, err = s.wrapNew(ctx, s.cfg.Keys, e, sec); err != nil {
		return err
	}
	if err := s.makeInstance(ctx, p.Engine, e.ref(), sec); err != nil {
		return err
	}
	boot.Wrapped = e.Wrapped
	if err := s.saveBoot(boot); err != nil {
		return err
	}
	return s.useSystem(ctx, boot)
}

func (b bootstrap) entry() entry {
	return entry{UID: b.System, Engine: b.Engine, Generation: b.Generation, KeyID: b.KeyID, Wrapped: b.Wrapped, State: stateActive}
}

func (s *Store) bootFile() string { return filepath.Join(s.cfg.Dir, "store.json") }

func (s *Store) saveBoot(b bootstrap) error {
	b.Version = 2
	text, err := json.MarshalIndent(b, "", " ")
	if err != nil {
		return err
	}
	return durable.WriteFile(s.bootFile(), append(text, '\n'), 0o600)
}

func (s *Store) loadBoot() (b bootstrap, err error) {
	text, err := readCapped(s.bootFile(), maxBootstrap)
	if err != nil {
		return b, err
	}
	if err := strictJSON(text, &b); err != nil {
		return b, err
	}
	if b.Store != s.uid || b.System != s.sys.uid {
		return b, fmt.Errorf("%s: %w: it is of another store", s.bootFile(), ErrTampered)
	}
	return b, nil
}

// settleSystem destroys what Pending names. Whatever was interrupted, what is
// in use is what the file names as such.
func (s *Store) settleSystem(ctx context.Context, b bootstrap) (bootstrap, error) {
	p := b.Pending
	if p == nil {
		return b, nil
	}
	if p.KeyID == b.KeyID {
		return b, fmt.Errorf("%s: %w: names the key in use as replaced", s.bootFile(), ErrTampered)
	}
	if p.Generation != b.Generation {
		e, ok := s.engines[b.Engine]
		if !ok {
			return b, fmt.Errorf("%w: no engine %q is configured", ErrRegion, b.Engine)
		}
		if err := e.Engine.Destroy(ctx, engine.Ref{UID: b.System, Generation: p.Generation}); err != nil {
			return b, err
		}
	}
	kctx, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	if err := s.cfg.Keys.Destroy(kctx, p.KeyID); err != nil {
		return b, keyError(err)
	}
	b.Pending = nil
	return b, s.saveBoot(b)
}

// nextSystemKey notes the name of a key that is to be made, in a generation.
func (s *Store) nextSystemKey(b bootstrap, generation uint32) (bootstrap, error) {
	b.KeyNumber = max(b.KeyNumber, 1) + 1
	b.Pending = &pending{KeyID: keyName(b.System, b.KeyNumber), Generation: generation}
	return b, s.saveBoot(b)
}

// changeSystem is RewrapKey and RotateKey for the system instance.
func (s *Store) changeSystem(ctx context.Context, p Principal, action string) error {
	if err := s.may(p, "", RoleControl); err != nil {
		return s.deny(ctx, p, action, err)
	}
	if s.shared && action == "rotate" {
		return fmt.Errorf("%w: the system instance is on a shared engine and is rewrapped only", ErrInvalid)
	}
	if err := s.audit.record(ctx, s.systemTrail(), Event{Action: action, Subject: p.subject, Stream: p.stream, Detail: "system instance"}); err != nil {
		return err
	}
	b, err := s.loadBoot()
	if err != nil {
		return err
	}
	if b, err = s.settleSystem(ctx, b); err != nil {
		return err
	}
	if action == "rotate" {
		b.Reencrypt = true
		return s.saveBoot(b)
	}
	return s.rewrapSystem(ctx, b)
}

func (s *Store) rewrapSystem(ctx context.Context, b bootstrap) error {
	sec, err := s.unwrap(ctx, b.entry())
	if err != nil {
		return err
	}
	defer sec.zero()
	if b, err = s.nextSystemKey(b, b.Generation); err != nil {
		return err
	}
	return s.switchSystem(ctx, b, sec, b.Generation)
}

// switchSystem wraps sec under the pending key, makes that the one in use in
// one write, and destroys what it replaces.
func (s *Store) switchSystem(ctx context.Context, b bootstrap, sec secret, generation uint32) error {
	next := b
	next.KeyID, next.Generation, next.Reencrypt = b.Pending.KeyID, generation, b.Reencrypt && generation == b.Generation
	next.Pending = &pending{KeyID: b.KeyID, Generation: b.Generation}
	var err error
	if next.Wrapped, err = s.wrapNew(ctx, s.cfg.Keys, next.entry(), sec); err != nil {
		return err
	}
	if err := s.saveBoot(next); err != nil {
		return err
	}
	_, err = s.settleSystem(ctx, next)
	return err
}

// reencryptSystem copies the system instance into its next generation under a
// new key, while nobody uses it: in Open.
func (s *Store) reencryptSystem(ctx context.Context, b bootstrap) (bootstrap, error) {
	e := b.entry()
	e.Region = s.engines[e.Engine].Region
	sec, err := s.unwrap(ctx, e)
	if err != nil {
		return b, err
	}
	defer sec.zero()
	fresh := newSecret(sec.lasting())
	defer fresh.zero()
	if b, err = s.nextSystemKey(b, b.Generation+1); err != nil {
		return b, err
	}
	next := e
	next.Generation++
	if err := s.fillNew(ctx, next, fresh, func(dst *instance) error {
		src, err := s.openInstance(ctx, e, sec)
		if err != nil {
			return err
		}
		return errors.Join(copyInstance(ctx, src, dst), src.db.Close())
	}); err != nil {
		return b, err
	}
	if err := s.switchSystem(ctx, b, fresh, next.Generation); err != nil {
		return b, err
	}
	text, err := readCapped(s.bootFile(), maxBootstrap)
	if err == nil {
		b = bootstrap{}
		err = strictJSON(text, &b)
	}
	return b, err
}
