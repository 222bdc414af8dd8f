package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/revocation"
	"github.com/trusttree/trusttree/tlsconn"
)

// node is the running daemon. Its links are proven in the order of the tree of
// trust; what one of them lacks, those after it do without or wait for.
type node struct {
	cfg  *config
	boot *wire.Bootstrap
	log  *slog.Logger

	tpm      *tpmDevice
	attest   *attest.Node
	modules  atomic.Pointer[moduleid.Inventory] // nil: not open yet
	system   *fscrypt.Volume
	data     *fscrypt.Volume
	tunnel   *tlsconn.Client
	identity *tlsconn.Identity
	// transport is HTTP through the tunnel.
	transport *http.Transport
	spools    map[string]*spool // by stream
	passed    map[string]*os.File
	lock      *os.File      // one daemon uses the state directory
	changed   chan struct{} // a module came or went

	judged         chan struct{} // the cloud has judged this node's evidence
	recheckModules chan struct{} // a new list of revoked modules is in force
	revoked        *revocation.Revocations

	enrolAgain chan struct{} // the cloud says that this node must enrol
	shutOut    chan struct{} // the cloud says that this node is revoked
	reboot     chan struct{} // closed when a release wants a reboot
	keep       *fscrypt.Keep // what the TPM unsealed in this boot, for a restart; nil: a restart needs a reboot

	connected atomic.Bool // a tunnel is up

	mu    sync.Mutex
	links []link
	up    chan struct{} // closed when the next tunnel comes up
}

func newNode(ctx context.Context, cfg *config, boot *wire.Bootstrap, log *slog.Logger) (*node, error) {
	if err := os.MkdirAll(cfg.State, 0o700); err != nil {
		return nil, err
	}
	n := &node{cfg: cfg, boot: boot, log: log, changed: make(chan struct{}, 1), enrolAgain: make(chan struct{}, 1), shutOut: make(chan struct{}, 1),
		judged: make(chan struct{}, 1), recheckModules: make(chan struct{}, 1), reboot: make(chan struct{}), up: make(chan struct{})}
	var err error
	if n.lock, err = lockState(cfg.State, time.Second); err != nil {
		return nil, err
	}
	if n.tpm, err = openTPM(cfg.TPM); err != nil {
		return nil, wire.Unavailable(err, "is there a TPM at the configured path, and may this user open it?")
	}
	return n, nil
}

// prove records a link: in the log, where monitors read it, and for `node
// status`.
func (n *node) prove(name, detail string) { n.record(link{Name: name, OK: true, Detail: detail}) }

// lost records that a link does not hold, and returns the error.
func (n *node) lost(name string, err error) error {
	n.record(link{Name: name, Detail: wire.OneLine(err.Error())})
	return fmt.Errorf("%s: %w", name, err)
}

func (n *node) record(l link) {
	l.At = time.Now()
	event, level := "link.proven", slog.LevelInfo
	if !l.OK {
		event, level = "link.lost", slog.LevelWarn
	}
	n.log.Log(context.Background(), level, l.Name, "event", event, "link", l.Name, "detail", l.Detail)
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.links {
		if n.links[i].Name == l.Name {
			n.links = append(n.links[:i], n.links[i+1:]...)
			break
		}
	}
	n.links = append(n.links, l)
	if data, err := json.Marshal(n.links); err == nil {
		_ = writeFile(statusFile(n.cfg), data)
	}
}

// run proves link after link and then serves until ctx ends.
func (n *node) run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, n.close()) }()
	if err := n.identify(ctx); err != nil {
		err = n.lost("tpm", err)
		switch {
		case errors.Is(err, attest.ErrUntrustedEK):
			return wire.Refused(err, "tpm_makers must hold the certificates of this TPM's maker, the issuers below its root too")
		case errors.Is(err, attest.ErrPin):
			return wire.Refused(err, "this disk belongs to another TPM; a node whose TPM was replaced needs a new state directory and a new token")
		}
		return err
	}
	if len(n.cfg.Modules) > 0 {
		if err := n.openModules(); err != nil { // tried again
			_ = n.lost("modules", err)
		} else {
			inventory, err := n.modules.Load().AdmitAll(ctx)
			n.showModules(inventory, err)
		}
	}
	if err := n.openKeep(); err != nil {
		_ = n.lost("keep", err)
	}
	if err := n.openSystem(ctx); err != nil {
		// Without its configuration the node can still say what is wrong.
		_ = n.lost("system volume", err)
	}
	if err := n.openSpools(); err != nil {
		return n.lost("telemetry", err)
	}
	return n.serve(ctx)
}

// serve keeps what needs no cloud going from now on, connects, and then keeps
// the rest going, each part on its own: losing one of them loses nothing else,
// and it comes back when its cause is gone.
func (n *node) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		cancel()
		wg.Wait()
	}()
	here := []func(context.Context){n.watchModules, n.takeReadings, func(ctx context.Context) { wire.Watchdog(ctx, n.alive) }}
	for _, s := range n.cfg.Streams {
		here = append(here, n.spools[s.Name].run, func(ctx context.Context) { n.generate(ctx, s) })
	}
	for _, part := range here {
		wg.Go(func() { part(ctx) })
	}
	wire.Notify("READY=1")
	if !n.retry(ctx, "identity", n.enroll) {
		return nil
	}
	if !n.retry(ctx, "tunnel", n.startTunnel) { // such as a flows file that can't be read
		return nil
	}
	parts := []func(context.Context){n.renew, n.keepData, n.followUpdates, n.tellChanges, n.followModuleList}
	for _, s := range n.cfg.Streams {
		parts = append(parts, func(ctx context.Context) { n.ship(ctx, s) })
	}
	for _, f := range n.cfg.Forwards {
		parts = append(parts, func(ctx context.Context) { n.forward(ctx, f) })
	}
	for _, part := range parts {
		wg.Go(func() { part(ctx) })
	}
	wg.Go(func() {
		select {
		case <-n.reboot:
			cancel()
		case <-ctx.Done():
		}
	})
	err := n.tunnel.Run(ctx)
	select {
	case <-n.reboot:
		return &wire.CodeError{Code: exitReboot, Err: errors.New("reboot: a release waits for it, or failed its trial")}
	default:
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// retry calls do until it succeeds or ctx ends, pausing longer each time.
func (n *node) retry(ctx context.Context, name string, do func(context.Context) error) bool {
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		err := do(ctx)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		_ = n.lost(name, err)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
	}
}

func (n *node) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var errs []error
	for _, v := range []*fscrypt.Volume{n.data, n.system} {
		switch {
		case v == nil:
		case n.keep != nil:
			errs = append(errs, v.Detach(ctx))
		default:
			errs = append(errs, v.Lock(ctx))
		}
	}
	wire.Notify("STOPPING=1")
	return errors.Join(append(errs, n.tpm.Close(), n.lock.Close())...)
}

// lockState makes sure that no other daemon uses the state directory. It tries
// for as long as wait: a command that shows the status holds the lock for a
// moment.
func lockState(dir string, wait time.Duration) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(wait); ; time.Sleep(50 * time.Millisecond) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !time.Now().Before(end) {
			_ = f.Close()
			return nil, wire.Unavailable(fmt.Errorf("%s: %w", dir, err), "another node daemon uses this state directory")
		}
	}
}

// writeFile replaces a small file durably: temporary file, fsync, rename, fsync
// of the directory.
func writeFile(name string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err = os.Rename(f.Name(), name); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readPEM reads every certificate of a PEM file.
func readPEM(name string) ([]*x509.Certificate, error) {
	data, err := wire.ReadCapped(name, maxConfig)
	if err != nil {
		return nil, err
	}
	certs, err := (&wire.Bootstrap{Roots: string(data)}).RootCerts()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return certs, nil
}
