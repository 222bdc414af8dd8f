package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"github.com/trusttree/trusttree/examples/wire"
)

// Limits of the sensors' socket.
const (
	maxSensors = 32             // connections at once
	maxLine    = 2 * maxRecord  // bytes of one line
	maxUnacked = 4 * maxBatch   // records of one connection that wait to be durable
	sensorIdle = 24 * time.Hour // a connection without a record ends
)

// reading is one line of a sensor process.
type reading struct {
	Stream string `json:"stream"`
	// Seq numbers the records of a stream: it grows, and a number that was
	// acknowledged is taken as done when it comes again. 0 or absent: a record
	// that is sent again counts again.
	Seq  uint64    `json:"seq,omitempty"`
	Time time.Time `json:"time,omitzero"` // the node's clock when absent
	// Value is the record, any JSON of at most maxRecord bytes.
	Value json.RawMessage `json:"value"`
}

// taken is the answer to one line, in the order of the lines: ok means that the
// record is durable on this node and will reach its tenant's instance once.
type taken struct {
	OK  bool   `json:"ok"`
	Seq uint64 `json:"seq,omitempty"`
	// Last is set when seq was acknowledged before and the record was not
	// taken again: the stream's last number. A sensor that lost count goes on
	// behind it.
	Last  uint64 `json:"last,omitempty"`
	Error string `json:"error,omitempty"`
}

// listenSensors opens the socket at which local module processes leave their
// records: the one that the service manager made (FileDescriptorName=sensors),
// or one at the configured path. Its directory and mode say who may.
func listenSensors(given *os.File, path string) (net.Listener, error) {
	if given != nil {
		ln, err := net.FileListener(given)
		if err == nil && ln.Addr().Network() != "unix" {
			err = errors.Join(fmt.Errorf("sensors: the service manager gave a %s socket: only a unix socket will do", ln.Addr().Network()), ln.Close())
		}
		return ln, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
}

// takeReadings serves the sensors' socket until ctx ends: lines of JSON in, one
// answer a line out.
func (n *node) takeReadings(ctx context.Context) {
	if n.cfg.Sensors == "" {
		return
	}
	ln, err := listenSensors(n.given("sensors"), n.cfg.Sensors)
	if err != nil {
		_ = n.lost("sensors", err)
		return
	}
	n.prove("sensors", "taken at "+ln.Addr().String())
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxSensors)
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() == nil {
				_ = n.lost("sensors", err)
			}
			return
		}
		select {
		case slots <- struct{}{}:
		default:
			n.log.Warn("too many sensor processes", "event", "sensors.refused", "limit", maxSensors)
			_ = conn.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			n.serveSensor(ctx, conn)
		})
	}
}

func (n *node) serveSensor(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer conn.Close()

	answers := make(chan chan taken, maxUnacked) // in the order of the lines
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer cancel()
		out := bufio.NewWriter(conn)
		enc := json.NewEncoder(out)
		for answer := range answers {
			var a taken
			select {
			case a = <-answer:
			case <-ctx.Done():
				return
			}
			err := enc.Encode(a)
			if err == nil && len(answers) == 0 {
				_ = conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
				err = out.Flush()
			}
			if err != nil {
				return
			}
		}
	})
	defer close(answers)
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	for {
		_ = conn.SetReadDeadline(time.Now().Add(sensorIdle))
		if !lines.Scan() {
			if err := lines.Err(); err != nil && ctx.Err() == nil {
				n.log.Warn("sensor process cut off", "event", "sensors.refused", "reason", err.Error())
			}
			return
		}
		answer := make(chan taken, 1)
		select {
		case answers <- answer:
		case <-ctx.Done():
			return
		}
		n.takeLine(ctx, lines.Bytes(), answer)
	}
}

// takeLine judges one line and spools its record.
func (n *node) takeLine(ctx context.Context, line []byte, answer chan<- taken) {
	var r reading
	err := wire.Decode(line, maxLine, &r)
	var s *spool
	if err == nil {
		s, err = n.streamOf(r)
	}
	if err != nil {
		answer <- taken{Seq: r.Seq, Error: err.Error()}
		return
	}
	if r.Time.IsZero() {
		r.Time = time.Now().UTC()
	}
	value := append([]byte(nil), r.Value...)
	p := &pending{sample: wire.Sample{Time: r.Time, Value: value}, seq: r.Seq}
	p.done = func(err error) {
		a := taken{OK: err == nil, Seq: r.Seq, Last: p.known}
		if err != nil {
			a.Error = "not kept: " + err.Error()
		}
		answer <- a
	}
	s.put(ctx, p)
}

func (n *node) streamOf(r reading) (*spool, error) {
	for _, c := range n.cfg.Streams {
		if c.Name != r.Stream {
			continue
		}
		if len(r.Value) == 0 || len(r.Value) > maxRecord {
			return nil, fmt.Errorf("value of %d bytes: 1 to %d are taken", len(r.Value), maxRecord)
		}
		if y := r.Time.Year(); !r.Time.IsZero() && (y < 1970 || y > 2261) {
			return nil, fmt.Errorf("time %v is out of range", r.Time)
		}
		return n.spools[c.Name], n.allowed(c)
	}
	return nil, fmt.Errorf("stream %.64q is not in this node's configuration", r.Stream)
}
