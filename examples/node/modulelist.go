package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/moduleid/revocation"
)

// openModuleList reads the newest list of revoked modules that this node has
// seen: the one that it keeps, or bootstrap.json's where that is newer. A cloud
// that can't be reached does not take the node back to an older one.
func (n *node) openModuleList() error {
	owner, err := x509.ParsePKIXPublicKey(n.boot.OwnerKey)
	if err != nil {
		return fmt.Errorf("bootstrap.json: owner_key: %w", err)
	}
	name := filepath.Join(n.cfg.State, "module-revocations")
	reading := true
	n.revoked, err = revocation.New(revocation.Config{Keys: []crypto.PublicKey{owner}, Save: func(signed []byte) error {
		if reading {
			return nil
		}
		return writeFile(name, signed)
	}})
	if err != nil {
		return err
	}
	kept, err := wire.ReadCapped(name, wire.MaxModuleList)
	if err == nil {
		err = n.revoked.Update(kept)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // damaged, or of an owner before this one
		n.log.Error("the kept list of revoked modules is set aside", "event", "modules.list-damaged", "file", name, "reason", err.Error())
		_ = os.Rename(name, name+".bad")
	}
	err = n.revoked.Update(n.boot.ModuleRevocations)
	reading = false
	if err != nil && n.revoked.Sequence() == 0 {
		return fmt.Errorf("bootstrap.json: module_revocations: %w", err)
	}
	return nil
}

// followModuleList keeps the list up to date, until ctx ends: it asks the cloud
// whenever the cloud has judged this node, which it does at once when there is a
// new list.
func (n *node) followModuleList(ctx context.Context) {
	if len(n.cfg.Modules) == 0 {
		return
	}
	for n.modules.Load() == nil { // until it opens there is no list to be newer
		select {
		case <-ctx.Done():
			return
		case <-n.judged:
		case <-time.After(time.Second):
		}
	}
	for {
		if err := n.fetchModuleList(ctx); err != nil && ctx.Err() == nil {
			n.log.Warn("no newer list of revoked modules", "event", "modules.list-refused", "reason", err.Error(), "in_force", n.revoked.Sequence(), "issued", n.revoked.Issued())
		}
		select {
		case <-ctx.Done():
			return
		case <-n.judged:
		}
	}
}

// fetchModuleList asks for the list: through the tunnel or, where there is none,
// at the enrolment service. The owner's signature says whether it counts.
func (n *node) fetchModuleList(ctx context.Context) error {
	before := n.revoked.Sequence()
	var err error
	if n.connected.Load() {
		err = n.fetchModuleListAt(ctx, &http.Client{Transport: n.transport, Timeout: 30 * time.Second}, "http://"+wire.ServiceReport)
	}
	if !n.connected.Load() || err != nil {
		client, cerr := n.cloudClient()
		if cerr != nil {
			return cerr
		}
		for _, url := range n.boot.EnrollURLs() {
			if err = n.fetchModuleListAt(ctx, client, url); err == nil {
				break
			}
		}
	}
	if now := n.revoked.Sequence(); now != before {
		n.log.Info("list of revoked modules in force", "event", "modules.list", "sequence", now, "issued", n.revoked.Issued())
		select {
		case n.recheckModules <- struct{}{}:
		default:
		}
	}
	return err
}

func (n *node) fetchModuleListAt(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+wire.PathModuleList, nil)
	if err != nil {
		return err
	}
	req.Header.Set("If-None-Match", strconv.Quote(strconv.FormatUint(n.revoked.Sequence(), 10)))
	rsp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer rsp.Body.Close()
	if rsp.StatusCode == http.StatusNotModified {
		return nil
	}
	signed, err := wire.ReadAll(rsp.Body, wire.MaxModuleList, "list of revoked modules")
	if err == nil && rsp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.200s", url, rsp.Status, strings.TrimSpace(string(signed)))
	}
	if err != nil {
		return err
	}
	return n.revoked.Update(signed)
}
