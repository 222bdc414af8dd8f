package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
)

// listenCheck is how often a quiet connection is asked whether it still lives.
const listenCheck = 15 * time.Second

// Wake implements engine.Waker by NOTIFY, which the server delivers when the
// transaction commits and forgets when it is rolled back. The channel is named
// after the instance and the message is empty: who listens learns that
// something happened, not what. It is safe behind a pooler, as it is part of
// the transaction.
func (t *tx) Wake() error {
	if err := t.ready(true); err != nil {
		return err
	}
	_, err := t.tx.Exec(t.ctx, "SELECT pg_notify($1::text, '')", name(t.d.ref))
	return t.failed(err)
}

// Listen implements engine.Listener. LISTEN belongs to a session, so it takes
// one connection of its own, to the server that Config.Admin names rather than
// to a pooler, with the login of the instance's role.
func (d *db) Listen(ctx context.Context, woken func()) error {
	c, err := pgx.ConnectConfig(ctx, d.direct)
	if err != nil {
		return classify(d.ref, err)
	}
	defer func() {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
		defer cancel()
		_ = c.Close(cctx)
	}()
	if _, err := c.Exec(ctx, "LISTEN "+pgx.Identifier{name(d.ref)}.Sanitize()); err != nil {
		return classify(d.ref, err)
	}
	woken()
	for {
		wctx, cancel := context.WithTimeout(ctx, listenCheck)
		_, err := c.WaitForNotification(wctx)
		cancel()
		switch {
		case err == nil:
			woken()
			continue
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, context.DeadlineExceeded) && !c.IsClosed():
			pctx, cancel := context.WithTimeout(ctx, connectTimeout)
			err = c.Ping(pctx)
			cancel()
		}
		if err != nil {
			return classify(d.ref, err)
		}
	}
}
