package main

import (
	"context"
	_ "embed"
	"errors"
	"net"
	"os"
	"sync"

	"github.com/trusttree/trusttree/attest/attesttest"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
	"github.com/trusttree/trusttree/secureboot/eventlog"
)

// Event logs of real boots of one machine (a virtual machine with UEFI, Secure
// Boot and a TPM): as its owner published it, after an update of its firmware's
// revocation list, and with Secure Boot switched off.
var (
	//go:embed testdata/good.log
	goodBoot []byte
	//go:embed testdata/updated.log
	updatedBoot []byte
	//go:embed testdata/tampered.log
	tamperedBoot []byte
)

// power boots a node's hardware: the TPM is reset and given the measurements of
// a real boot, in their order, and the log lies where the kernel shows it.
func (c *city) power(ctx context.Context, t *attesttest.TPM, log []byte) error {
	parsed, err := eventlog.Parse(log, nil)
	if err != nil {
		return err
	}
	var boot []attesttest.Measurement
	for e := range parsed.Extends() {
		boot = append(boot, attesttest.Measurement{PCR: e.PCR, Digests: e.Digests})
	}
	if err := t.Boot(boot...); err != nil {
		return err
	}
	c.bus.close()
	if c.bus, err = serveTPM(ctx, t, c.path("tpm.sock")); err != nil {
		return err
	}
	for _, d := range []string{"run"} { // what a reboot clears
		if err := errors.Join(os.RemoveAll(c.path("node", d)), os.Mkdir(c.path("node", d), 0o700)); err != nil {
			return err
		}
	}
	return os.WriteFile(c.path("node", "event-log"), log, 0o600)
}

// serveTPM serves a TPM on a unix socket, as swtpm does.
func serveTPM(ctx context.Context, t *attesttest.TPM, path string) (*server, error) {
	_ = os.Remove(path)
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	return serve(ctx, ln, t.Serve), nil
}

// server is an emulated part behind a listener.
type server struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
}

func serve(ctx context.Context, ln net.Listener, f func(context.Context, net.Listener) error) *server {
	ctx, cancel := context.WithCancel(ctx)
	s := &server{cancel: cancel}
	s.done.Go(func() { _ = f(ctx, ln) })
	return s
}

func (s *server) close() {
	if s != nil {
		s.cancel()
		s.done.Wait()
	}
}

// serveModules plugs both modules in: an ATECC608 behind its word-address
// protocol, and an SPDM responder behind DSP0287 TCP.
func (c *city) serveModules(ctx context.Context) (err error) {
	if c.camera, err = plugATECC(ctx, c.ports["camera"], c.cameraCA); err != nil {
		return err
	}
	responder, _, err := moduleidtest.NewSPDM(c.airCA, "air sensor 0042", []byte("air sensor firmware 7"))
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", c.ports["air"])
	if err != nil {
		return err
	}
	c.air = serve(ctx, ln, responder.ServeAll)
	return nil
}

// plugATECC puts a module with an ATECC608 certified by ca into a connector.
func plugATECC(ctx context.Context, addr string, ca *moduleidtest.CA) (*server, error) {
	chip, err := moduleidtest.NewATECC608(moduleidtest.DataSheet)
	if err != nil {
		return nil, err
	}
	cert, err := ca.Issue("camera 0007", chip.PublicKey(), nil)
	if err != nil {
		return nil, err
	}
	if err := chip.Store(cert); err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	return serve(ctx, ln, chip.ServeTCP), nil
}
