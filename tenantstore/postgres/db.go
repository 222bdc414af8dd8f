package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trusttree/trusttree/tenantstore/engine"
	"github.com/trusttree/trusttree/tenantstore/internal/group"
)

// groupTimeout bounds one group commit, whatever its writers' contexts say.
const groupTimeout = 30 * time.Second

// Rows and bytes that a scan asks for at once.
const (
	firstPage = 16
	maxPage   = 512
	pageBytes = 4 << 20
)

// begin starts a transaction on one of the engine's connections.
func (d *db) begin(ctx context.Context, mode pgx.TxAccessMode, f func(pgx.Tx) error) error {
	select {
	case d.e.conns <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-d.e.conns }()
	return pgx.BeginTxFunc(ctx, d.pool, pgx.TxOptions{AccessMode: mode, IsoLevel: pgx.RepeatableRead}, f)
}

// Update implements engine.DB.
func (d *db) Update(ctx context.Context, f func(engine.Tx) error) error {
	err := d.wait.Do(ctx, f)
	return err
}

// errAlone rolls back the transaction of one job that failed.
var errAlone = errors.New("the only job failed")

// runGroup commits jobs together, each in a savepoint. An advisory lock that
// lasts as long as the transaction serialises the writers of all processes; it
// is taken before the snapshot. It ends when nobody waits for it any more.
func (d *db) runGroup(jobs []*group.Job) error {
	ctx, cancel := context.WithTimeout(context.Background(), groupTimeout)
	defer cancel()
	var waiting atomic.Int32
	waiting.Store(int32(len(jobs)))
	for _, j := range jobs {
		defer context.AfterFunc(j.Ctx, func() {
			if waiting.Add(-1) == 0 {
				cancel()
			}
		})()
	}
	peeked := map[string][]byte{}
	ran := false
	err := d.update(ctx, func(ptx pgx.Tx) error {
		for _, j := range jobs {
			if j.Err = j.Ctx.Err(); j.Err != nil {
				continue
			}
			if err := d.runJob(ctx, ptx, j, peeked, len(jobs) > 1); err != nil {
				return err
			}
		}
		ran = true
		return nil
	})
	if err == nil || errors.Is(err, errAlone) {
		return nil
	}
	if ctx.Err() != nil && waiting.Load() <= 0 {
		err = errors.Join(context.Canceled, err)
	}
	if err = classify(d.ref, err); !ran { // no commit was asked for
		err = fmt.Errorf("%w: %w", engine.ErrAborted, err)
	}
	return err
}

func (d *db) update(ctx context.Context, f func(pgx.Tx) error) error {
	select {
	case d.e.conns <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-d.e.conns }()
	// Read committed: with the lock held nothing changes between statements.
	return pgx.BeginTxFunc(ctx, d.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(ptx pgx.Tx) error {
		if _, err := ptx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", d.lockKey()); err != nil {
			return err
		}
		return f(ptx)
	})
}

func (d *db) lockKey() int64 { return int64(binary.BigEndian.Uint64(d.ref.UID[:8])) }

// runJob returns an error only when the whole transaction is lost.
func (d *db) runJob(ctx context.Context, ptx pgx.Tx, j *group.Job, peeked map[string][]byte, nested bool) error {
	if nested {
		if _, err := ptx.Exec(ctx, "SAVEPOINT s"); err != nil {
			return err
		}
	}
	t := &tx{d: d, ctx: ctx, tx: ptx, write: true, peeked: peeked}
	j.Run(t)
	t.d = nil
	switch {
	case !nested && j.Err != nil:
		return errAlone
	case !nested:
		return nil
	case j.Err == nil:
		_, err := ptx.Exec(ctx, "RELEASE SAVEPOINT s")
		return err
	}
	_, err := ptx.Exec(ctx, "ROLLBACK TO SAVEPOINT s; RELEASE SAVEPOINT s")
	return err
}

// View implements engine.DB.
func (d *db) View(ctx context.Context, f func(engine.Tx) error) error {
	var ferr error
	err := d.begin(ctx, pgx.ReadOnly, func(ptx pgx.Tx) error {
		t := &tx{d: d, ctx: ctx, tx: ptx}
		ferr = f(t)
		t.d = nil
		return ferr
	})
	if ctx.Err() != nil && err != nil {
		return ctx.Err()
	}
	if ferr != nil {
		return ferr // as it is
	}
	return classify(d.ref, err)
}

// Size implements engine.DB.
func (d *db) Size(ctx context.Context) (n int64, err error) {
	err = d.pool.QueryRow(ctx, "SELECT pg_total_relation_size($1::text::regclass)", d.table).Scan(&n)
	return n, classify(d.ref, err)
}

// Check implements engine.DB: it reads every row.
func (d *db) Check(ctx context.Context) error {
	var rows, bytes int64
	err := d.pool.QueryRow(ctx, fmt.Sprintf("SELECT count(*), coalesce(sum(length(k) + length(v)), 0) FROM %s", d.table)).Scan(&rows, &bytes)
	return classify(d.ref, err)
}

// Close implements engine.DB.
func (d *db) Close() error {
	d.pool.Close()
	return nil
}

type tx struct {
	d     *db // nil once the transaction is over
	ctx   context.Context
	tx    pgx.Tx
	write bool

	peeked map[string][]byte // of the jobs that are committed together
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

// failed classifies an error inside the transaction: of a writing one nothing
// will be kept.
func (t *tx) failed(err error) error {
	err = classify(t.d.ref, err)
	if t.write && errors.Is(err, engine.ErrUnavailable) {
		err = fmt.Errorf("%w: %w", engine.ErrAborted, err)
	}
	return err
}

func (t *tx) Get(key []byte) (v []byte, err error) {
	if err := t.ready(false); err != nil {
		return nil, err
	}
	err = t.tx.QueryRow(t.ctx, "SELECT v FROM "+t.d.table+" WHERE k = $1", key).Scan(&v)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, t.failed(err)
	}
	return v, nil
}

// Peek implements engine.Peeker.
func (t *tx) Peek(key []byte) ([]byte, error) {
	if v, ok := t.peeked[string(key)]; ok {
		return v, nil
	}
	v, err := t.Get(key)
	if err == nil && t.peeked != nil {
		t.peeked[string(key)] = v
	}
	return v, err
}

func (t *tx) exec(sql string, args ...any) (bool, error) {
	if err := t.ready(true); err != nil {
		return false, err
	}
	tag, err := t.tx.Exec(t.ctx, fmt.Sprintf(sql, t.d.table), args...)
	if err != nil {
		return false, t.failed(err)
	}
	return tag.RowsAffected() > 0, nil
}

func (t *tx) Put(key, value []byte) error {
	_, err := t.exec("INSERT INTO %s VALUES ($1, $2) ON CONFLICT (k) DO UPDATE SET v = excluded.v", key, value)
	return err
}

func (t *tx) Insert(key, value []byte) (bool, error) {
	return t.exec("INSERT INTO %s VALUES ($1, $2) ON CONFLICT (k) DO NOTHING", key, value)
}

func (t *tx) Delete(key []byte) (bool, error) { return t.exec("DELETE FROM %s WHERE k = $1", key) }

// Scan reads in pages, so that the loop may read and memory stays bounded.
func (t *tx) Scan(from, to []byte, reverse bool, limit int) iter.Seq2[engine.KV, error] {
	return func(yield func(engine.KV, error) bool) {
		lo, hi := append([]byte{}, from...), to
		size := min(firstPage, limit)
		for limit > 0 {
			page, err := t.page(lo, hi, reverse, min(size, limit))
			if err != nil {
				yield(engine.KV{}, err)
				return
			}
			n := 1
			for _, kv := range page {
				n += len(kv.Key) + len(kv.Value)
				if !yield(kv, nil) {
					return
				}
			}
			if len(page) < min(size, limit) {
				return
			}
			limit -= len(page)
			last := page[len(page)-1].Key
			if reverse {
				hi = last
			} else {
				lo = append(last[:len(last):len(last)], 0)
			}
			size = max(1, min(maxPage, pageBytes/(n/len(page)+1)))
		}
	}
}

func (t *tx) page(lo, hi []byte, reverse bool, limit int) ([]engine.KV, error) {
	if err := t.ready(false); err != nil {
		return nil, err
	}
	sql, args := "SELECT k, v FROM "+t.d.table+" WHERE k >= $1", []any{lo, limit}
	if hi != nil {
		sql, args = sql+" AND k < $3", append(args, hi)
	}
	order := ""
	if reverse {
		order = " DESC"
	}
	rows, err := t.tx.Query(t.ctx, sql+" ORDER BY k"+order+" LIMIT $2", args...)
	if err != nil {
		return nil, t.failed(err)
	}
	page, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (kv engine.KV, err error) {
		err = r.Scan(&kv.Key, &kv.Value)
		return kv, err
	})
	if err != nil {
		return nil, t.failed(err)
	}
	return page, nil
}
