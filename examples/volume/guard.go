package main

import (
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"filippo.io/age"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/secureboot/bootpolicy"
)

// guard is a set of protectors as flags name them.
type guard struct {
	tpm, pcrs, key, signed   string
	counter, share, after    string
	pin, passphrase          string
	recipients, identityFile string
	classic, noLatch         bool
	workFactor               int

	device transport.TPMCloser
}

func (g *guard) flags(f *flag.FlagSet, prefix string) {
	f.StringVar(&g.tpm, prefix+"tpm", "", "`device` of the TPM, for example /dev/tpmrm0 or unix:SOCKET")
	f.StringVar(&g.pcrs, prefix+"pcrs", "", "seal to these PCRs as they are now, for example `7,11`")
	f.StringVar(&g.key, prefix+"policy-key", "", "PEM `file` with the public key that signs boot states")
	f.StringVar(&g.signed, prefix+"policy", "", "`file` of signed boot states, in systemd-measure's JSON")
	f.StringVar(&g.counter, prefix+"counter", "", "NV `index` of the volume's counter, for example 0x01800112")
	f.StringVar(&g.share, prefix+"share", "", "NV `index` of a key share that destroy undefines, for example 0x01800134")
	f.StringVar(&g.after, prefix+"after", "", "`latches`, in hexadecimal, of volumes opened earlier in each boot")
	f.StringVar(&g.pin, prefix+"pin-file", "", "`file` with the TPM slot's PIN")
	f.StringVar(&g.passphrase, prefix+"passphrase-file", "", "`file` with a passphrase")
	f.IntVar(&g.workFactor, prefix+"work-factor", 0, "binary `logarithm` of scrypt's cost for a new passphrase slot; 0 means 17, which takes 128 MiB")
	f.StringVar(&g.recipients, prefix+"recipient", "", "age `recipients` of a recovery slot, separated by commas")
	f.StringVar(&g.identityFile, prefix+"identity", "", "`file` with age identities that open a recovery slot")
	f.BoolVar(&g.classic, prefix+"insecure-classic-recipients", false, "admit recipients that are not post-quantum")
	f.BoolVar(&g.noLatch, prefix+"unsafe-no-latch", false, "let the volume be opened more than once in each boot")
}

const maxFile = 1 << 20 // bytes of a file named by a flag

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s: more than %d bytes", name, maxFile)
	}
	return b, err
}

func readLine(name string) (string, error) {
	b, err := readFile(name)
	return strings.TrimRight(string(b), "\r\n"), err
}

func (g *guard) close() error {
	if g.device == nil {
		return nil
	}
	return g.device.Close()
}

// protectors makes what the flags name.
func (g *guard) protectors() (ps []fscrypt.Protector, err error) {
	if g.tpm != "" {
		p, err := g.tpmProtector()
		if err != nil {
			return nil, err
		}
		ps = append(ps, p)
	}
	if g.passphrase != "" {
		text, err := readLine(g.passphrase)
		if err != nil {
			return nil, err
		}
		ps = append(ps, &fscrypt.Passphrase{Passphrase: text, WorkFactor: g.workFactor})
	}
	if g.recipients != "" || g.identityFile != "" {
		r := &fscrypt.Recovery{InsecureClassicRecipients: g.classic}
		if g.recipients != "" {
			if r.Recipients, err = age.ParseRecipients(strings.NewReader(strings.ReplaceAll(g.recipients, ",", "\n"))); err != nil {
				return nil, wire.Usage("recipient: %w", err)
			}
		}
		if g.identityFile != "" {
			b, err := readFile(g.identityFile)
			if err != nil {
				return nil, err
			}
			if r.Identities, err = age.ParseIdentities(strings.NewReader(string(b))); err != nil {
				return nil, wire.Usage("%s: %w", g.identityFile, err)
			}
		}
		ps = append(ps, r)
	}
	if len(ps) == 0 {
		return nil, wire.Usage("no protector: -tpm, -passphrase-file, -recipient or -identity")
	}
	return ps, nil
}

func (g *guard) tpmProtector() (_ *fscrypt.TPM, err error) {
	if path, ok := strings.CutPrefix(g.tpm, "unix:"); ok {
		g.device, err = linuxudstpm.Open(path)
	} else {
		g.device, err = linuxtpm.Open(g.tpm)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", fscrypt.ErrUnavailable, err)
	}
	p := &fscrypt.TPM{Device: g.device, UnsafeNoLatch: g.noLatch}
	policy, err := g.policy()
	if err != nil {
		return nil, err
	}
	p.Policies = []fscrypt.BootPolicy{policy}
	for _, i := range []struct {
		text string
		to   *tpm2.TPMHandle
	}{{g.counter, &p.Counter}, {g.share, &p.Share}} {
		if i.text == "" {
			continue
		}
		n, err := strconv.ParseUint(i.text, 0, 32)
		if err != nil {
			return nil, wire.Usage("NV index %q: %w", i.text, err)
		}
		*i.to = tpm2.TPMHandle(n)
	}
	if g.after != "" {
		for l := range strings.SplitSeq(g.after, ",") {
			b, err := hex.DecodeString(l)
			if err != nil {
				return nil, wire.Usage("-after: %w", err)
			}
			p.After = append(p.After, b)
		}
	}
	if g.pin != "" {
		pin, err := readLine(g.pin)
		if err != nil {
			return nil, err
		}
		p.PIN = []byte(pin)
	}
	return p, nil
}

// policy is the owner's signed boot states, or the PCRs as they are.
func (g *guard) policy() (fscrypt.BootPolicy, error) {
	if g.key != "" {
		b, err := readFile(g.key)
		if err != nil {
			return nil, err
		}
		block, _ := pem.Decode(b)
		if block == nil {
			return nil, wire.Usage("%s: no PEM block", g.key)
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, wire.Usage("%s: %w", g.key, err)
		}
		if g.signed == "" {
			return nil, wire.Usage("-policy-key needs -policy")
		}
		signed, err := readFile(g.signed)
		if err != nil {
			return nil, err
		}
		return bootpolicy.Signed(key, signed)
	}
	if g.pcrs == "" {
		return nil, wire.Usage("-tpm needs -policy-key and -policy, or -pcrs")
	}
	values := map[int][]byte{}
	for s := range strings.SplitSeq(g.pcrs, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 || n > 23 {
			return nil, wire.Usage("PCR %q: want 0 to 23", s)
		}
		if values[n], err = readPCR(g.device, n); err != nil {
			return nil, err
		}
	}
	return bootpolicy.Literal(crypto.SHA256, values)
}

func readPCR(t transport.TPM, n int) ([]byte, error) {
	sel := make([]byte, 3)
	sel[n/8] = 1 << (n % 8)
	rsp, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: sel}}}}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("read PCR %d: %w", n, err)
	}
	if len(rsp.PCRValues.Digests) != 1 {
		return nil, errors.New("the TPM's SHA-256 bank is not active")
	}
	return rsp.PCRValues.Digests[0].Buffer, nil
}
