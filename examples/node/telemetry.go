package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/trusttree/trusttree/examples/wire"
)

// openSpools opens the spool of each stream. Records are kept from then on,
// whether or not the cloud can be reached.
func (n *node) openSpools() error {
	recipient, err := age.ParseHybridRecipient(n.boot.SpoolTo)
	if err != nil {
		return fmt.Errorf("bootstrap.json: spool_to: %w", err)
	}
	n.spools = map[string]*spool{}
	for _, c := range n.cfg.Streams {
		s, err := openSpool(filepath.Join(n.cfg.State, "spool", c.Name), c.Name, recipient)
		if err == nil {
			err = s.clean()
		}
		if err != nil {
			return err
		}
		for _, d := range s.damaged {
			n.log.Error("the number of the last delivery is damaged, and set aside", "event", "spool.damaged", "stream", c.Name, "file", d)
		}
		if s.unknown != nil { // all but numbered records goes on
			_ = n.lost("numbers "+c.Name, s.unknown)
		}
		n.spools[c.Name] = s
	}
	return nil
}

// errModule says that a stream's module may not be used.
var errModule = errors.New("the stream's module is not admitted")

// allowed says whether a stream's records may be taken: those of a stream that
// belongs to a module only while that module is admitted.
func (n *node) allowed(c stream) error {
	if c.Bay == "" {
		return nil
	}
	inventory := n.modules.Load()
	if inventory == nil {
		return fmt.Errorf("%w: connector %s", errModule, c.Bay)
	}
	bay := inventory.Bay(c.Bay)
	if bay == nil || !bay.Entry().Admitted() {
		return fmt.Errorf("%w: connector %s", errModule, c.Bay)
	}
	return nil
}

// generate puts a made-up record into a stream whenever it is time: for demos,
// and for streams whose sensors are not there yet.
func (n *node) generate(ctx context.Context, c stream) {
	if c.Every <= 0 {
		return
	}
	tick := time.NewTicker(c.Every.duration())
	defer tick.Stop()
	for {
		now := time.Now().UTC()
		value, err := json.Marshal(map[string]any{"stream": c.Name, "lux": 20 + now.Second()})
		if err == nil {
			err = n.allowed(c)
		}
		if err == nil {
			n.spools[c.Name].put(ctx, &pending{sample: wire.Sample{Time: now, Value: value}, done: func(err error) {
				if err != nil && ctx.Err() == nil {
					_ = n.lost("telemetry "+c.Name, err)
				}
			}})
		} else {
			_ = n.lost("telemetry "+c.Name, err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// ship delivers one stream's batches for as long as the node runs. A batch
// leaves the spool when the cloud has acknowledged it as durable.
func (n *node) ship(ctx context.Context, c stream) {
	s := n.spools[c.Name]
	proven := false
	pause := time.Duration(0)
	for {
		up := n.nextTunnel()
		sent, err := n.deliver(ctx, s)
		switch {
		case err != nil && ctx.Err() == nil:
			proven = false
			pause = min(max(2*pause, time.Second), time.Minute)
			_ = n.lost("telemetry "+c.Name, err)
		case err == nil:
			pause = 0
			if sent > 0 && !proven {
				proven = true
				n.prove("telemetry "+c.Name, "stored by its tenant's instance, acknowledged")
			}
		}
		fresh := s.fresh
		var again <-chan time.Time
		if pause > 0 { // a stream that comes fast must not make failures come fast
			fresh, again = nil, time.After(pause)
		}
		select {
		case <-ctx.Done():
			return
		case <-fresh:
		case <-again:
		case <-up: // the tunnel is back
		}
	}
}

// deliver sends what is in the spool, oldest first, and returns how many batches
// the cloud acknowledged.
func (n *node) deliver(ctx context.Context, s *spool) (sent int, err error) {
	files, err := s.files()
	if err != nil {
		return 0, err
	}
	files, dropped, err := s.trim(files)
	if dropped > 0 {
		n.log.Warn("spool is full, oldest batches dropped", "event", "spool.dropped", "stream", s.stream, "batches", dropped)
	}
	if err != nil {
		return 0, err
	}
	client := &http.Client{Transport: n.transport, Timeout: 30 * time.Second}
	for _, f := range files {
		if f.size == 0 || f.size > 2*wire.MaxBatch {
			if err := n.setAside(s, f, fmt.Sprintf("%d bytes", f.size)); err != nil {
				return sent, err
			}
			continue
		}
		sealed, err := wire.ReadCapped(f.name, 2*wire.MaxBatch)
		if err != nil {
			return sent, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+wire.ServiceIngest+"/v1/ingest", bytes.NewReader(sealed))
		if err != nil {
			return sent, err
		}
		req.Header.Set("Content-Type", "application/age")
		rsp, err := client.Do(req)
		if err != nil {
			return sent, err
		}
		answer, err := wire.ReadAll(rsp.Body, 4096, "answer")
		rsp.Body.Close()
		if err != nil {
			return sent, err
		}
		if rsp.StatusCode == http.StatusBadRequest { // damaged: it will not get better
			if err := n.setAside(s, f, strings.TrimSpace(string(answer))); err != nil {
				return sent, err
			}
			continue
		}
		if rsp.StatusCode != http.StatusNoContent {
			return sent, fmt.Errorf("ingest: %s: %s", rsp.Status, strings.TrimSpace(string(answer)))
		}
		if err := s.remove(f); err != nil {
			return sent, err
		}
		sent++
	}
	return sent, nil
}

func (n *node) setAside(s *spool, f batchFile, why string) error {
	n.log.Warn("damaged batch set aside", "event", "spool.damaged", "stream", s.stream, "file", filepath.Base(f.name), "reason", why)
	return s.setAside(f)
}
