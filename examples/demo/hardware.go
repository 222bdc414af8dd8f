package main

import (
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/attest/attesttest"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
	"github.com/trusttree/trusttree/moduleid/spdm"
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
	if c.bus, err = serveTPM(t, c.path("tpm.sock")); err != nil {
		return err
	}
	for _, d := range []string{"run"} { // what a reboot clears
		if err := errors.Join(os.RemoveAll(c.path("node", d)), os.Mkdir(c.path("node", d), 0o700)); err != nil {
			return err
		}
	}
	return os.WriteFile(c.path("node", "event-log"), log, 0o600)
}

// tpmServer serves a TPM on a unix socket, as swtpm does.
type tpmServer struct {
	ln net.Listener
	wg sync.WaitGroup
}

func serveTPM(t transport.TPM, path string) (*tpmServer, error) {
	_ = os.Remove(path)
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	s := &tpmServer{ln: ln}
	s.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() {
				defer conn.Close()
				for serveCommand(t, conn) == nil {
				}
			})
		}
	})
	return s, nil
}

func serveCommand(t transport.TPM, conn io.ReadWriter) error {
	head := make([]byte, 10)
	if _, err := io.ReadFull(conn, head); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(head[2:])
	if size < 10 || size > 4096 {
		return fmt.Errorf("command of %d bytes", size)
	}
	command := append(head, make([]byte, size-10)...)
	if _, err := io.ReadFull(conn, command[10:]); err != nil {
		return err
	}
	response, err := t.Send(command)
	if err != nil {
		return err
	}
	_, err = conn.Write(response)
	return err
}

func (s *tpmServer) close() {
	if s != nil {
		_ = s.ln.Close()
	}
}

// chipServer is a module in its connector.
type chipServer struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
}

func (s *chipServer) close() {
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
	ctx, cancel := context.WithCancel(ctx)
	c.air = &chipServer{cancel: cancel}
	context.AfterFunc(ctx, func() { _ = ln.Close() })
	c.air.done.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			for serveSPDM(responder, conn) == nil {
			}
			_ = conn.Close()
		}
	})
	return nil
}

// plugATECC puts a module with an ATECC608 certified by ca into a connector.
func plugATECC(ctx context.Context, addr string, ca *moduleidtest.CA) (*chipServer, error) {
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
	ctx, cancel := context.WithCancel(ctx)
	s := &chipServer{cancel: cancel}
	s.done.Go(func() { _ = chip.ServeTCP(ctx, ln) })
	return s, nil
}

// serveSPDM answers one request in the framing of DSP0287.
func serveSPDM(r *spdm.Responder, conn io.ReadWriter) error {
	var head [4]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return err
	}
	n := int(binary.LittleEndian.Uint16(head[:2])) - 2
	if n < 4 || head[2] != 1 || head[3] != 5 {
		return errors.New("not an SPDM message")
	}
	request := make([]byte, n)
	if _, err := io.ReadFull(conn, request); err != nil {
		return err
	}
	response := r.Respond(request)
	out := binary.LittleEndian.AppendUint16(nil, uint16(len(response)+2))
	_, err := conn.Write(append(append(out, 1, 5), response...))
	return err
}
