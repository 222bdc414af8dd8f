package sqlite

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/ncruces/go-sqlite3"

	"github.com/trusttree/trusttree/tenantstore/engine"
	"github.com/trusttree/trusttree/tenantstore/internal/group"
)

var errClosed = errors.New("instance is closed")

// db is one connection; lock serialises its use.
type db struct {
	c    *sqlite3.Conn
	name string
	lock chan struct{} // capacity 1; full while somebody uses c
	wait group.Queue

	// Owned by who holds lock.
	get, put, insert, del, fwd, back                   *sqlite3.Stmt
	read, begin, commit, rollback, save, undo, release *sqlite3.Stmt
	broken                                             error
	reads                                              int // since the last commit or checkpoint
	logged                                             bool
}

// quietReads is after how many reads in a row the log is copied into the data
// file: a page costs twice as much to read out of the log, where it lies across
// two blocks of the cipher.
const quietReads = 2000

func (d *db) prepare() error {
	for _, s := range []struct {
		p   **sqlite3.Stmt
		sql string
	}{
		{&d.get, "SELECT v FROM r WHERE k=?"},
		{&d.put, "INSERT INTO r VALUES(?,?) ON CONFLICT(k) DO UPDATE SET v=excluded.v"},
		{&d.insert, "INSERT INTO r VALUES(?,?) ON CONFLICT(k) DO NOTHING"},
		{&d.del, "DELETE FROM r WHERE k=?"},
		{&d.fwd, "SELECT k,v FROM r WHERE k>=?1 AND (?2 IS NULL OR k<?2) ORDER BY k LIMIT ?3"},
		{&d.back, "SELECT k,v FROM r WHERE k>=?1 AND (?2 IS NULL OR k<?2) ORDER BY k DESC LIMIT ?3"},
		{&d.read, "BEGIN"}, {&d.begin, "BEGIN IMMEDIATE"}, {&d.commit, "COMMIT"}, {&d.rollback, "ROLLBACK"},
		{&d.save, "SAVEPOINT s"}, {&d.undo, "ROLLBACK TO s"}, {&d.release, "RELEASE s"},
	} {
		st, _, err := d.c.PrepareFlags(s.sql, sqlite3.PREPARE_PERSISTENT)
		if err != nil {
			return err
		}
		*s.p = st
	}
	return nil
}

func (d *db) acquire(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	select {
	case d.lock <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	if d.broken != nil {
		<-d.lock
		return d.broken
	}
	return nil
}

func (d *db) free() { <-d.lock }

// Update implements engine.DB.
func (d *db) Update(ctx context.Context, f func(engine.Tx) error) error { return d.wait.Do(ctx, f) }

// runGroup commits jobs together, each in a savepoint.
func (d *db) runGroup(jobs []*group.Job) (err error) {
	if d.broken != nil {
		return d.broken
	}
	if err := d.endRead(); err != nil {
		return err
	}
	d.logged, d.reads = true, 0
	if err = d.begin.Exec(); err == nil {
		for _, j := range jobs {
			if err = d.runJob(j, len(jobs) > 1); err != nil {
				break
			}
		}
	}
	if err == nil {
		if len(jobs) == 1 && jobs[0].Err != nil {
			err = d.rollback.Exec()
		} else {
			err = d.commit.Exec()
		}
	}
	if err == nil {
		return nil
	}
	err = classify(d.name, err)
	if !d.c.GetAutocommit() {
		if rerr := d.rollback.Exec(); rerr != nil {
			d.broken = fmt.Errorf("%w (rolling back: %w)", err, rerr)
		}
	}
	return err
}

// runJob returns an error only when the whole transaction is lost.
func (d *db) runJob(j *group.Job, nested bool) error {
	if j.Err = j.Ctx.Err(); j.Err != nil {
		return nil
	}
	if nested {
		if err := d.save.Exec(); err != nil {
			return err
		}
	}
	d.c.SetInterrupt(j.Ctx)
	tx := &tx{d: d, write: true}
	j.Run(tx)
	tx.d = nil
	d.c.SetInterrupt(context.Background())
	if d.c.GetAutocommit() { // SQLite itself has rolled the transaction back
		return errors.Join(errors.New("transaction was rolled back"), j.Err)
	}
	if !nested {
		return nil
	}
	if j.Err != nil {
		if err := d.undo.Exec(); err != nil {
			return err
		}
	}
	return d.release.Exec()
}

// View implements engine.DB.
func (d *db) View(ctx context.Context, f func(engine.Tx) error) error {
	if err := d.acquire(ctx); err != nil {
		return err
	}
	defer d.free()
	if err := d.startRead(); err != nil {
		return err
	}
	d.c.SetInterrupt(ctx)
	tx := &tx{d: d}
	defer func() {
		tx.d = nil
		d.c.SetInterrupt(context.Background())
	}()
	return f(tx)
}

// startRead begins a read transaction, which stays open from View to View until
// somebody writes: the connection has the file to itself, so it keeps nobody
// from anything and sees nothing old.
func (d *db) startRead() error {
	if d.reads++; d.logged && d.reads > quietReads {
		if err := d.endRead(); err != nil {
			return err
		}
		// A checkpoint that fails loses nothing: the log stays, and the next
		// commit or quiet time tries again.
		_, _, _ = d.c.WALCheckpoint("main", sqlite3.CHECKPOINT_PASSIVE)
		d.logged = false
	}
	if !d.c.GetAutocommit() {
		return nil
	}
	return classify(d.name, d.read.Exec())
}

// endRead ends the read transaction, if there is one.
func (d *db) endRead() error {
	if d.c.GetAutocommit() {
		return nil
	}
	err := classify(d.name, d.commit.Exec())
	if err != nil && !d.c.GetAutocommit() {
		if rerr := d.rollback.Exec(); rerr != nil {
			d.broken = fmt.Errorf("%w (rolling back: %w)", err, rerr)
		}
	}
	return err
}

// Size implements engine.DB.
func (d *db) Size(ctx context.Context) (n int64, err error) {
	if err := d.acquire(ctx); err != nil {
		return 0, err
	}
	defer d.free()
	for _, p := range []string{"page_count", "freelist_count"} {
		v, err := d.pragma(p)
		if err != nil {
			return 0, classify(d.name, err)
		}
		if p == "page_count" {
			n += v
		} else {
			n -= v
		}
	}
	return n * 4096, nil
}

func (d *db) pragma(name string) (n int64, err error) {
	if err := d.c.SetAuthorizer(nil); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, d.c.SetAuthorizer(authorize)) }()
	st, _, err := d.c.Prepare("PRAGMA " + name)
	if err != nil {
		return 0, err
	}
	defer st.Close()
	if st.Step() {
		n = st.ColumnInt64(0)
	}
	return n, st.Err()
}

// Check implements engine.DB.
func (d *db) Check(ctx context.Context) (err error) {
	if err := d.acquire(ctx); err != nil {
		return err
	}
	defer d.free()
	d.c.SetInterrupt(ctx)
	defer d.c.SetInterrupt(context.Background())
	if err := d.c.SetAuthorizer(nil); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.c.SetAuthorizer(authorize)) }()
	st, _, err := d.c.Prepare("PRAGMA integrity_check(1)")
	if err != nil {
		return classify(d.name, err)
	}
	defer st.Close()
	if st.Step() {
		if s := st.ColumnText(0); s != "ok" {
			return fmt.Errorf("%s: %w: %s", d.name, engine.ErrCorrupt, s)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return classify(d.name, st.Err())
}

// Close implements engine.DB.
func (d *db) Close() error {
	d.lock <- struct{}{}
	defer d.free()
	if d.broken == errClosed {
		return nil
	}
	if d.broken == nil && d.commit != nil {
		_ = d.endRead() // closing rolls back what is left
	}
	d.broken = errClosed
	for _, st := range slices.Collect(d.c.Stmts()) { // closing changes the list
		_ = st.Close()
	}
	return classify(d.name, d.c.Close())
}

type tx struct {
	d     *db // nil once the transaction is over
	write bool
}

func (t *tx) ready(write bool) error {
	switch {
	case t.d == nil:
		return errors.New("transaction is over")
	case write && !t.write:
		return errors.New("transaction is read-only")
	}
	return nil
}

func (t *tx) Get(key []byte) ([]byte, error) {
	if err := t.ready(false); err != nil {
		return nil, err
	}
	st := t.d.get
	if err := st.BindBlob(1, key); err != nil {
		return nil, err
	}
	var v []byte
	if st.Step() {
		v = st.ColumnBlob(0, []byte{})
	}
	err := st.Err()
	return v, classify(t.d.name, errors.Join(err, st.Reset()))
}

// exec runs a statement with a key and, unless it is nil, a value.
func (t *tx) exec(s *sqlite3.Stmt, key, value []byte) error {
	if err := s.BindBlob(1, key); err != nil {
		return err
	}
	if value != nil {
		if err := s.BindBlob(2, value); err != nil {
			return err
		}
	}
	return classify(t.d.name, s.Exec())
}

func (t *tx) Put(key, value []byte) error {
	if err := t.ready(true); err != nil {
		return err
	}
	if value == nil {
		value = []byte{}
	}
	return t.exec(t.d.put, key, value)
}

func (t *tx) Insert(key, value []byte) (bool, error) {
	if err := t.ready(true); err != nil {
		return false, err
	}
	if value == nil {
		value = []byte{}
	}
	err := t.exec(t.d.insert, key, value)
	return err == nil && t.d.c.Changes() > 0, err
}

func (t *tx) Delete(key []byte) (bool, error) {
	if err := t.ready(true); err != nil {
		return false, err
	}
	err := t.exec(t.d.del, key, nil)
	return err == nil && t.d.c.Changes() > 0, err
}

func (t *tx) Scan(from, to []byte, reverse bool, limit int) iter.Seq2[engine.KV, error] {
	return func(yield func(engine.KV, error) bool) {
		if err := t.ready(false); err != nil {
			yield(engine.KV{}, err)
			return
		}
		st := t.d.fwd
		if reverse {
			st = t.d.back
		}
		if st.Busy() {
			yield(engine.KV{}, errors.New("scan inside a scan of the same direction"))
			return
		}
		err := errors.Join(st.BindBlob(1, append([]byte{}, from...)), st.BindInt(3, limit))
		if to == nil {
			err = errors.Join(err, st.BindNull(2))
		} else {
			err = errors.Join(err, st.BindBlob(2, to))
		}
		if err != nil {
			yield(engine.KV{}, err)
			return
		}
		defer func() { _ = st.Reset() }()
		for st.Step() {
			if !yield(engine.KV{Key: st.ColumnBlob(0, nil), Value: st.ColumnBlob(1, nil)}, nil) {
				return
			}
		}
		if err := st.Err(); err != nil {
			yield(engine.KV{}, classify(t.d.name, err))
		}
	}
}
