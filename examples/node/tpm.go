package main

import (
	"context"
	"crypto"
	"fmt"
	"net"
	"strings"
	"sync"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
)

// tpmDevice is the node's TPM. Commands of its users take turns; each library
// package keeps the TPM to itself for as long as a sequence of commands lasts.
type tpmDevice struct {
	mu sync.Mutex
	t  transport.TPMCloser
}

// openTPM opens /dev/tpmrm0 or, as unix:PATH, the socket of a software TPM.
func openTPM(name string) (*tpmDevice, error) {
	var t transport.TPMCloser
	var err error
	if path, ok := strings.CutPrefix(name, "unix:"); ok {
		var conn net.Conn
		if conn, err = net.Dial("unix", path); err == nil {
			t = transport.FromReadWriteCloser(conn)
		}
	} else {
		if name == "" {
			name = "/dev/tpmrm0"
		}
		t, err = linuxtpm.Open(name)
	}
	return &tpmDevice{t: t}, err
}

func (d *tpmDevice) Send(command []byte) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.t.Send(command)
}

func (d *tpmDevice) Close() error { return d.t.Close() }

// modulePCRs measures the module inventory.
type modulePCRs struct{ t transport.TPM }

var pcrAlgs = map[crypto.Hash]tpm2.TPMAlgID{crypto.SHA1: tpm2.TPMAlgSHA1, crypto.SHA256: tpm2.TPMAlgSHA256, crypto.SHA384: tpm2.TPMAlgSHA384}

func (p modulePCRs) ExtendPCR(_ context.Context, pcr int, digests map[crypto.Hash][]byte) error {
	for bank, digest := range digests {
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: pcrAlgs[bank], Digest: digest}}},
		}.Execute(p.t)
		if err != nil {
			return fmt.Errorf("extend PCR %d: %w", pcr, err)
		}
	}
	return nil
}

func (p modulePCRs) ReadPCR(_ context.Context, pcr int, bank crypto.Hash) ([]byte, error) {
	sel := make([]byte, 3)
	sel[pcr/8] = 1 << (pcr % 8)
	rsp, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: pcrAlgs[bank], PCRSelect: sel}}}}.Execute(p.t)
	if err != nil {
		return nil, fmt.Errorf("read PCR %d: %w", pcr, err)
	}
	if len(rsp.PCRValues.Digests) != 1 {
		return nil, fmt.Errorf("read PCR %d: bank %v is not active", pcr, bank)
	}
	return rsp.PCRValues.Digests[0].Buffer, nil
}
