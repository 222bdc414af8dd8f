package fscrypt

import (
	"errors"

	"github.com/trusttree/trusttree/fscrypt/internal/disk"
)

// sink takes an age file. A small one stays in memory; a larger one goes to a
// file of its own, from a buffer that is written while the next one fills.
type sink struct {
	disk disk.FS
	id   string
	mem  []byte
	file disk.File // nil while everything is in mem

	through bool // write to the file at once
	buf     []byte
	spare   []byte
	writing chan error // nil while nothing is being written
	ahead   int        // bytes written since the disk was asked to begin
}

const (
	// sinkBuffer is the size, in bytes, of each of a sink's two buffers.
	sinkBuffer = 512 << 10
	// beginAt is how much is written, in bytes, before the disk is asked to
	// begin with it, so that not all of it waits for the flush.
	beginAt = 8 << 20
)

// Write implements io.Writer.
func (s *sink) Write(p []byte) (int, error) {
	if s.file == nil && len(s.mem)+len(p) <= maxInline {
		s.mem = append(s.mem, p...)
		return len(p), nil
	}
	if err := s.spill(); err != nil {
		return 0, err
	}
	if s.through {
		return s.file.Write(p)
	}
	if len(s.buf)+len(p) > sinkBuffer {
		if err := s.hand(); err != nil {
			return 0, err
		}
	}
	s.buf = append(s.buf, p...)
	return len(p), nil
}

// hand has the buffer written, and goes on with the other one.
func (s *sink) hand() error {
	if err := s.wait(); err != nil || len(s.buf) == 0 {
		return err
	}
	b, begin := s.buf, false
	s.buf, s.spare = s.spare[:0], b
	if s.ahead += len(b); s.ahead >= beginAt {
		s.ahead, begin = 0, true
	}
	done := make(chan error, 1)
	s.writing = done
	go func() {
		_, err := s.file.Write(b)
		if f, ok := s.file.(disk.Beginner); ok && err == nil && begin {
			f.Begin()
		}
		done <- err
	}()
	return nil
}

// wait waits for what is being written.
func (s *sink) wait() error {
	if s.writing == nil {
		return nil
	}
	err := <-s.writing
	s.writing = nil
	return err
}

// flush brings everything to the file.
func (s *sink) flush() error {
	if err := s.wait(); err != nil || len(s.buf) == 0 {
		return err
	}
	_, err := s.file.Write(s.buf)
	s.buf = s.buf[:0]
	return err
}

// spill moves what is in memory to the file.
func (s *sink) spill() (err error) {
	if s.file != nil {
		return nil
	}
	if s.file, err = s.disk.Create("objects/" + s.id); err != nil {
		return err
	}
	_, err = s.file.Write(s.mem)
	s.mem = nil
	return err
}

// sync makes the file and its name durable.
func (s *sink) sync() error {
	if err := s.flush(); err != nil {
		return err
	}
	if err := s.file.Sync(); err != nil {
		return err
	}
	return s.disk.SyncDir("objects")
}

// close closes the file; what was not flushed is lost.
func (s *sink) close() error {
	return errors.Join(s.wait(), s.file.Close())
}
