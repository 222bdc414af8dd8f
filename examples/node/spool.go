package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/trusttree/trusttree/examples/wire"
)

// Limits of one stream's spool. When it is full the oldest batches go: an
// endless outage must not fill the disk.
const (
	maxSpool      = 10000     // files
	maxSpoolBytes = 256 << 20 // of files
	maxBatch      = 500       // records in one batch
	maxRecord     = 64 << 10  // bytes of one record's value
	gatherFor     = 20 * time.Millisecond
)

// spool keeps one stream's records until its tenant's instance has them. Each
// batch is a file, encrypted to the cloud, so that a thief, and the node
// itself, can't read it back. A batch counts once however often it was sent,
// and a record of a sensor that numbers its records counts once however often
// the sensor gave it.
//
// A file is named TIME-RANDOM-SEQ.age, where SEQ is the last number in it: the
// number and the records become durable together. lastSeq keeps it when the
// batch has left.
type spool struct {
	dir    string
	stream string
	to     age.Recipient

	in      chan *pending
	fresh   chan struct{} // something was spooled since the last delivery
	last    uint64        // the last number that is durable; of run alone
	unknown error         // why last is not known: numbered records are not taken
	damaged []string      // what was set aside when the spool was opened
}

// pending is a record that waits to be durable.
type pending struct {
	sample wire.Sample
	seq    uint64 // 0: the sensor does not number its records
	known  uint64 // set when seq is durable already: the last number that is
	err    error  // set when this record alone can't be kept
	done   func(error)
}

func openSpool(dir, stream string, to age.Recipient) (*spool, error) {
	s := &spool{dir: dir, stream: stream, to: to, in: make(chan *pending, maxBatch), fresh: make(chan struct{}, 1)}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	last, damaged, err := readSeq(dir)
	s.last, s.damaged = last, damaged
	if err != nil {
		s.unknown = err
	}
	files, err := s.files()
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if seq := seqOf(f.name); seq >= max(s.last, 1) { // what waits is newer than what has left
			s.last, s.unknown = seq, nil
		}
	}
	return s, nil
}

func seqOf(name string) uint64 {
	base := strings.TrimSuffix(filepath.Base(name), ".age")
	n, _ := strconv.ParseUint(base[strings.LastIndexByte(base, '-')+1:], 10, 64)
	return n
}

// put hands a record over; done is called once, when the record is durable or
// can't be kept. It waits while the disk is behind.
func (s *spool) put(ctx context.Context, p *pending) {
	select {
	case s.in <- p:
	case <-ctx.Done():
		p.done(ctx.Err())
	}
}

// run writes what is put, many records at a time, until ctx ends.
func (s *spool) run(ctx context.Context) {
	for {
		var batch []*pending
		select {
		case <-ctx.Done():
			return
		case p := <-s.in:
			batch = append(batch, p)
		}
		size := len(batch[0].sample.Value)
		timer := time.NewTimer(gatherFor)
	gather:
		for len(batch) < maxBatch && size < wire.MaxBatch/4 {
			select {
			case p := <-s.in:
				batch, size = append(batch, p), size+len(p.sample.Value)
			case <-timer.C:
				break gather
			case <-ctx.Done():
				break gather
			}
		}
		timer.Stop()
		err := s.write(batch)
		for _, p := range batch {
			p.done(errors.Join(p.err, err))
		}
		select {
		case s.fresh <- struct{}{}:
		default:
		}
	}
}

// write makes a batch durable. Numbered records that are durable already are
// left out.
func (s *spool) write(batch []*pending) error {
	now, last := time.Now().UTC(), s.last
	b := wire.Batch{Version: 1, Stream: s.stream}
	for _, p := range batch {
		if p.seq != 0 && s.unknown != nil {
			p.err = s.unknown
			continue
		}
		if p.seq != 0 && p.seq <= last {
			p.known = last
			continue
		}
		last = max(last, p.seq)
		b.Records = append(b.Records, p.sample)
	}
	if len(b.Records) == 0 {
		return nil
	}
	b.ID = fmt.Sprintf("%020d-%s-%d", now.UnixNano(), rand.Text(), last)
	plain, err := json.Marshal(b)
	if err != nil {
		return err
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, s.to)
	if err != nil {
		return err
	}
	if _, err := w.Write(plain); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	clear(plain)
	name := filepath.Join(s.dir, b.ID+".age")
	if err := writeFile(name, sealed.Bytes()); err != nil {
		_ = os.Remove(name) // what the sensor is told was not kept must not arrive
		return err
	}
	s.last = last
	return nil
}

// batchFile is a file of the spool.
type batchFile struct {
	name string
	size int64
}

// files lists what waits, oldest first.
func (s *spool) files() ([]batchFile, error) {
	entries, err := os.ReadDir(s.dir) // sorted by name, and so by time
	if err != nil {
		return nil, err
	}
	var out []batchFile
	for _, e := range entries {
		if strings.Contains(e.Name(), ".tmp-") { // a write that a cut ended
			continue
		}
		if !strings.HasSuffix(e.Name(), ".age") {
			continue
		}
		fi, err := e.Info()
		if err != nil {
			return nil, err
		}
		out = append(out, batchFile{filepath.Join(s.dir, e.Name()), fi.Size()})
	}
	return out, nil
}

// trim removes the oldest files of a spool that is full, and returns the rest
// and how many went.
func (s *spool) trim(files []batchFile) (rest []batchFile, dropped int, err error) {
	var total int64
	for _, f := range files {
		total += f.size
	}
	for len(files) > maxSpool || total > maxSpoolBytes {
		if err := s.remove(files[0]); err != nil {
			return files, dropped, err
		}
		total -= files[0].size
		files, dropped = files[1:], dropped+1
	}
	return files, dropped, nil
}

// remove takes a batch out of the spool. Its number stays.
func (s *spool) remove(f batchFile) error {
	if err := s.keepSeq(f); err != nil {
		return err
	}
	return os.Remove(f.name)
}

// setAside keeps a batch that can't be delivered, damaged as it is, out of the
// way of those behind it.
func (s *spool) setAside(f batchFile) error {
	if err := s.keepSeq(f); err != nil {
		return err
	}
	return os.Rename(f.name, strings.TrimSuffix(f.name, ".age")+".bad")
}

func (s *spool) keepSeq(f batchFile) error {
	if seq := seqOf(f.name); seq > 0 {
		return writeSeq(s.dir, seq)
	}
	return nil
}

// clean removes temporary files that a cut left. Call it before run.
func (s *spool) clean() error {
	names, err := filepath.Glob(filepath.Join(s.dir, "*.tmp-*"))
	for _, n := range slices.Clip(names) {
		err = errors.Join(err, os.Remove(n))
	}
	return err
}
