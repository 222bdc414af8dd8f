package tenantstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/trusttree/trusttree/tenantstore/engine"
)

// Anchors detect that an embedded instance was put back to an older state. An
// anchor is a random tag that the instance holds and the catalogue remembers.
// A session's first write and its end each make a new one: first in the
// instance, beside the one before, then in the catalogue. So at any cut the
// catalogue's anchor is one of the instance's two, and an older copy of the
// instance has neither.
const (
	anchorName  = "anchor"
	anchorsName = "~anchors"
	tagSize     = 16
)

func (s *Store) anchorKey(uid UID) []byte {
	return append(s.sys.seal.space(kindRecord, anchorsName), uid[:]...)
}

func (in *instance) anchorKey() []byte { return append(in.seal.space(kindMeta), anchorName...) }

// checkAnchor compares the instance with the catalogue when it is opened.
func (s *Store) checkAnchor(ctx context.Context, in *instance) error {
	if p := s.engines[in.entry.Engine]; p.Engine.Shared() || s.sys == nil {
		return nil
	}
	var want, have []byte
	err := s.sys.db.View(ctx, func(tx engine.Tx) (err error) {
		_, want, err = s.sys.get(tx, new(scratch), s.anchorKey(in.uid))
		return ignoreNotFound(err)
	})
	if err == nil {
		err = in.db.View(ctx, func(tx engine.Tx) (err error) {
			_, have, err = in.get(tx, new(scratch), in.anchorKey())
			return ignoreNotFound(err)
		})
	}
	if err != nil {
		return err
	}
	if len(want) != 4+tagSize || binary.BigEndian.Uint32(want) != in.entry.Generation {
		return nil // none for this generation yet
	}
	tag := want[4:]
	if len(have) != 2*tagSize || !bytes.Equal(have[:tagSize], tag) && !bytes.Equal(have[tagSize:], tag) {
		return fmt.Errorf("%w: the instance is older than the catalogue knows it", ErrRollback)
	}
	in.anchor = tag
	return nil
}

func ignoreNotFound(err error) error {
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// moveAnchor makes a new anchor.
func (s *Store) moveAnchor(ctx context.Context, in *instance) error {
	old := in.anchor
	if old == nil {
		old = make([]byte, tagSize)
	}
	next := make([]byte, tagSize)
	_, _ = rand.Read(next)
	if err := in.db.Update(ctx, func(tx engine.Tx) error {
		return in.put(tx, new(scratch), in.anchorKey(), append(old[:tagSize:tagSize], next...), s.version())
	}); err != nil {
		return err
	}
	value := append(binary.BigEndian.AppendUint32(nil, in.entry.Generation), next...)
	if err := s.sys.db.Update(ctx, func(tx engine.Tx) error {
		return s.sys.put(tx, new(scratch), s.anchorKey(in.uid), value, s.version())
	}); err != nil {
		return err
	}
	in.anchor = next
	return nil
}

// firstWrite anchors a session before its first write.
func (s *Store) firstWrite(ctx context.Context, in *instance) error {
	if in.uid == s.sys.uid || s.engines[in.entry.Engine].Engine.Shared() {
		return nil
	}
	if err := in.mu.lock(ctx); err != nil {
		return err
	}
	defer in.mu.unlock()
	if in.dirty {
		return nil
	}
	if err := s.moveAnchor(ctx, in); err != nil {
		return err
	}
	in.dirty = true
	return nil
}

// closeInstance anchors the end of a session that wrote, and closes it.
func (s *Store) closeInstance(in *instance) error {
	ctx := context.Background()
	err := in.mu.lock(ctx)
	if in.dirty {
		err = s.moveAnchor(ctx, in)
	}
	in.mu.unlock()
	return errors.Join(err, in.db.Close())
}
