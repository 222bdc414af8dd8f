package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"filippo.io/age"

	"github.com/trusttree/trusttree/examples/wire"
)

// maxSpool bounds the files that wait in one stream's spool. When it is full
// the oldest go: an endless outage must not fill the disk.
const maxSpool = 10000

// ship gathers one stream's records and delivers them. Each batch is first
// written to the spool, encrypted to the cloud, so that a thief, and the node
// itself, can't read it back; it leaves the spool when the cloud has
// acknowledged it as durable, and counts once however often it was sent.
func (n *node) ship(ctx context.Context, s stream) {
	dir := filepath.Join(n.cfg.State, "spool", s.Name)
	recipient, err := age.ParseHybridRecipient(n.boot.SpoolTo)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		_ = n.lost("telemetry "+s.Name, err)
		return
	}
	fresh := make(chan struct{}, 1) // something was spooled since the last delivery
	var wg sync.WaitGroup
	wg.Go(func() { n.gather(ctx, dir, s, recipient, fresh) })
	defer wg.Wait()
	proven := false
	for {
		sent, err := n.deliver(ctx, dir)
		switch {
		case err == nil && sent > 0 && !proven:
			proven = true
			n.prove("telemetry "+s.Name, "stored by its tenant's instance, acknowledged")
		case err != nil && ctx.Err() == nil:
			proven = false
			_ = n.lost("telemetry "+s.Name, err)
		}
		select {
		case <-ctx.Done():
			return
		case <-fresh:
		}
	}
}

// gather spools a record whenever it is time, whether or not the cloud can be
// reached.
func (n *node) gather(ctx context.Context, dir string, s stream, to age.Recipient, fresh chan<- struct{}) {
	tick := time.NewTicker(s.Every.duration())
	defer tick.Stop()
	for {
		if err := n.spool(dir, s, to); err != nil {
			_ = n.lost("telemetry "+s.Name, err)
		}
		select {
		case fresh <- struct{}{}:
		default:
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// spool writes one batch of the built-in generator.
func (n *node) spool(dir string, s stream, to age.Recipient) error {
	now := time.Now().UTC()
	value, err := json.Marshal(map[string]any{"stream": s.Name, "lux": 20 + now.Second()})
	if err != nil {
		return err
	}
	batch := wire.Batch{Version: 1, ID: fmt.Sprintf("%020d-%s", now.UnixNano(), rand.Text()), Stream: s.Name, Records: []wire.Sample{{Time: now, Value: value}}}
	plain, err := json.Marshal(batch)
	if err != nil {
		return err
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, to)
	if err != nil {
		return err
	}
	if _, err := w.Write(plain); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, batch.ID+".age"), sealed.Bytes())
}

// deliver sends what is in the spool, oldest first, and returns how many batches
// the cloud acknowledged.
func (n *node) deliver(ctx context.Context, dir string) (sent int, err error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.age"))
	if err != nil {
		return sent, err
	}
	slices.Sort(names)
	for len(names) > maxSpool {
		n.log.Warn("spool is full, oldest batch dropped", "event", "spool.dropped", "file", filepath.Base(names[0]))
		if err := os.Remove(names[0]); err != nil {
			return sent, err
		}
		names = names[1:]
	}
	client := &http.Client{Transport: n.tunnel.Transport(), Timeout: 30 * time.Second}
	for _, name := range names {
		sealed, err := wire.ReadCapped(name, wire.MaxBatch)
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
		if rsp.StatusCode != http.StatusNoContent {
			return sent, fmt.Errorf("ingest: %s: %s", rsp.Status, strings.TrimSpace(string(answer)))
		}
		if err := os.Remove(name); err != nil {
			return sent, err
		}
		sent++
	}
	return sent, nil
}
