// Package group is group commit: writers that wait for the disk together share
// one transaction and so one sync.
package group

import (
	"context"
	"errors"
	"sync"

	"github.com/trusttree/trusttree/tenantstore/engine"
)

// maxGroup is how many jobs share a transaction at most.
const maxGroup = 256

// Job is one writer's transaction.
type Job struct {
	Ctx context.Context
	Err error // what Do will return

	f    func(engine.Tx) error
	died any // what f panicked with
	done chan struct{}
}

// Run runs the job's function; a panic of it becomes Err here and a panic of
// Do there.
func (j *Job) Run(tx engine.Tx) {
	defer func() {
		if j.died = recover(); j.died != nil {
			j.Err = errors.New("transaction panicked")
		}
	}()
	j.Err = j.f(tx)
}

// Queue collects jobs for one database.
type Queue struct {
	// Lock has capacity 1 and is full while somebody uses the database.
	Lock chan struct{}
	// Commit runs each job, sets Err where it failed alone, and makes the
	// others durable together; its error is everybody's.
	Commit func([]*Job) error

	mu   sync.Mutex
	jobs []*Job
}

// Do runs f in a transaction. Who gets the lock runs everybody's job that
// waits.
func (q *Queue) Do(ctx context.Context, f func(engine.Tx) error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	j := &Job{Ctx: ctx, f: f, done: make(chan struct{})}
	q.mu.Lock()
	q.jobs = append(q.jobs, j)
	q.mu.Unlock()
	select {
	case <-j.done: // another's commit took it along
	case <-ctx.Done():
		if q.withdraw(j) {
			return ctx.Err()
		}
		<-j.done
	case q.Lock <- struct{}{}:
		q.lead(j)
		<-q.Lock
		<-j.done
	}
	if j.died != nil {
		panic(j.died)
	}
	return j.Err
}

// lead runs groups until j is done.
func (q *Queue) lead(j *Job) {
	for {
		select {
		case <-j.done:
			return
		default:
		}
		q.mu.Lock()
		n := min(len(q.jobs), maxGroup)
		jobs := append([]*Job(nil), q.jobs[:n]...)
		q.jobs = q.jobs[n:]
		q.mu.Unlock()
		if n == 0 {
			return
		}
		err := q.Commit(jobs)
		for _, j := range jobs {
			if err != nil {
				j.Err = err
			}
			close(j.done)
		}
	}
}

func (q *Queue) withdraw(j *Job) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, x := range q.jobs {
		if x == j {
			q.jobs = append(q.jobs[:i:i], q.jobs[i+1:]...)
			return true
		}
	}
	return false
}
