package city

import (
	"context"
	_ "embed"
	"net"
	"sync"

	"github.com/trusttree/trusttree/moduleid/moduleidtest"
)

// Event logs of real boots of one machine (a virtual machine with UEFI, Secure
// Boot and a TPM): as its owner published it, after an update of its firmware's
// revocation list, and with Secure Boot switched off.
var (
	//go:embed testdata/good.log
	GoodBoot []byte
	//go:embed testdata/updated.log
	UpdatedBoot []byte
	//go:embed testdata/tampered.log
	TamperedBoot []byte
)

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

// plugATECC puts a module with an ATECC608 certified by ca behind its
// word-address protocol.
func plugATECC(ctx context.Context, ln net.Listener, ca *moduleidtest.CA, serial string) (*server, error) {
	chip, err := moduleidtest.NewATECC608(moduleidtest.DataSheet)
	if err != nil {
		return nil, err
	}
	cert, err := ca.Issue(serial, chip.PublicKey(), nil)
	if err != nil {
		return nil, err
	}
	if err := chip.Store(cert); err != nil {
		return nil, err
	}
	return serve(ctx, ln, chip.ServeTCP), nil
}

// plugSPDM puts a module with an SPDM responder behind DSP0287 TCP.
func plugSPDM(ctx context.Context, ln net.Listener, ca *moduleidtest.CA, serial string) (*server, error) {
	responder, _, err := moduleidtest.NewSPDM(ca, serial, []byte("air sensor firmware 7"))
	if err != nil {
		return nil, err
	}
	return serve(ctx, ln, responder.ServeAll), nil
}
