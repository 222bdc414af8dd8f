package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/moduleid/revocation"
	"github.com/trusttree/trusttree/tenantstore"
)

// moduleList is the newest list of revoked modules that the owner signed. It is
// in the store that all instances share, and never goes back to an older one:
// not by an operator, not by another instance, not by a restart. It is safe for
// concurrent use.
type moduleList struct {
	records *tenantstore.Collection
	owner   crypto.PublicKey
	// inForce judges modules.
	inForce *revocation.Revocations
	log     *slog.Logger

	mu      sync.Mutex
	signed  []byte // the bytes of inForce
	version uint64 // of the record in the store; 0: there is none
}

const ownerCollection = "owner" // what the owner signed, newest of each kind

var moduleListKey = []byte("module-revocations")

// listOld is the age of a list from which on the owner should sign a new one:
// one of 30 days refuses every module.
const listOld = 20 * 24 * time.Hour

// openModuleList reads the list from the store, and from the file of the state
// directory if that is newer.
func openModuleList(ctx context.Context, system *tenantstore.Tenant, owner crypto.PublicKey, file string, log *slog.Logger) (*moduleList, error) {
	l := &moduleList{records: system.Collection(ownerCollection), owner: owner, log: log}
	var err error
	if l.inForce, err = revocation.New(revocation.Config{Keys: []crypto.PublicKey{owner}}); err != nil {
		return nil, err
	}
	if err := l.load(ctx); err != nil {
		return nil, err
	}
	signed, err := wire.ReadCapped(file, wire.MaxModuleList)
	if err == nil {
		if err = l.update(ctx, signed); errors.Is(err, revocation.ErrRollback) {
			err = nil // newer ones came over the operators' API
		} else if err != nil {
			err = fmt.Errorf("%s: %w", file, err)
		}
	}
	if errors.Is(err, fs.ErrNotExist) && l.inForce.Sequence() > 0 {
		err = nil
	}
	if err != nil {
		return nil, err
	}
	if age := time.Since(l.inForce.Issued()); age > listOld {
		log.Warn("the list of revoked modules is old; when it is 30 days old, every module is refused: sign and upload the next", "event", "modules.list-old",
			"sequence", l.inForce.Sequence(), "issued", l.inForce.Issued())
	}
	return l, nil
}

// load takes the list from the store, where another instance may have put it.
func (l *moduleList) load(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.loadLocked(ctx)
}

func (l *moduleList) loadLocked(ctx context.Context) error {
	rec, err := l.records.Get(ctx, moduleListKey)
	if errors.Is(err, tenantstore.ErrNotFound) {
		return nil
	}
	if err != nil || rec.Version == l.version {
		return err
	}
	l.version = rec.Version
	if err := l.inForce.Update(rec.Value); err != nil {
		// Of an owner's key that is no longer in owner.pub: a list of the new
		// key replaces it.
		l.log.Warn("the stored list of revoked modules is not used", "event", "modules.list-refused", "reason", err.Error())
		return nil
	}
	l.signed = rec.Value
	return nil
}

// update takes a signed list into force: it is durable, for all instances, when
// update returns nil.
func (l *moduleList) update(ctx context.Context, signed []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if err := l.loadLocked(ctx); err != nil {
			return err
		}
		trial, err := revocation.New(revocation.Config{Keys: []crypto.PublicKey{l.owner}})
		if err != nil {
			return err
		}
		if l.signed != nil {
			if err := trial.Update(l.signed); err != nil {
				return err
			}
		}
		before := trial.Sequence()
		if err := trial.Update(signed); err != nil {
			return err
		}
		if trial.Sequence() == before {
			return nil // in force already
		}
		version, err := l.records.PutIf(ctx, moduleListKey, signed, l.version)
		if errors.Is(err, tenantstore.ErrConflict) {
			continue // another instance was first: is this one still the newer?
		}
		if err != nil {
			return err
		}
		l.signed, l.version = signed, version
		return l.inForce.Update(signed)
	}
}

// current returns the list in force as the owner signed it, and its sequence.
func (l *moduleList) current() (signed []byte, sequence uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.signed, l.inForce.Sequence()
}

// ServeHTTP gives nodes the list, unless it is the one that they have.
func (l *moduleList) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	signed, sequence := l.current()
	tag := strconv.Quote(strconv.FormatUint(sequence, 10))
	w.Header().Set("ETag", tag)
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(signed)
}

// reviseModules is the operators' PUT of a new list: it is in force at all
// instances, and all nodes are asked for evidence.
func (a *admin) reviseModules(w http.ResponseWriter, r *http.Request, _ tenantstore.Principal) error {
	signed, err := wire.ReadAll(r.Body, wire.MaxModuleList, "list")
	if err != nil {
		return fmt.Errorf("%w: %w", tenantstore.ErrInvalid, err)
	}
	if err := a.modules.update(r.Context(), signed); err != nil {
		if strings.HasPrefix(err.Error(), "revocation: ") {
			err = fmt.Errorf("%w: %w", tenantstore.ErrInvalid, err)
		}
		return err
	}
	if err := a.act(r.Context(), change{Kind: "modules"}); err != nil {
		return err
	}
	_, sequence := a.modules.current()
	a.log.Warn("list of revoked modules in force", "event", "modules.list", "sequence", sequence, "by", subject(r))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// Attestations that this instance asks for of itself, all nodes in turn: so
// many in a second that ordinary ones keep half of its strength.
const recheckRate = 200

// recheckAll asks every node with a tunnel here for evidence.
func (c *cloud) recheckAll() {
	select {
	case c.recheck <- struct{}{}:
	default: // it is about to begin
	}
}

// recheckLoop does it, until ctx ends.
func (c *cloud) recheckLoop(ctx context.Context) {
	pace := time.NewTicker(time.Second / recheckRate)
	defer pace.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.recheck:
		}
		for _, p := range c.gateway.Peers() {
			select {
			case <-ctx.Done():
				return
			case <-pace.C:
				c.gateway.Reattest(p.ID)
			}
		}
	}
}
