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
	"net"
	"os"
	"strconv"
	"strings"

	"filippo.io/age"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/secureboot/bootpolicy"
)

// guard is a set of protectors as flags name them.
type guard struct {
	tpm, pcrs, key, signed     string
	counter, share, revocation string
	parent, ownerAuth, after   string
	pin, passphrase            string
	recipients, identityFile   string
	classic, noLatch, replace  bool
	workFactor                 int
}

func (g *guard) flags(f *flag.FlagSet, prefix string) {
	f.StringVar(&g.tpm, prefix+"tpm", "", "`device` of the TPM, for example /dev/tpmrm0 or unix:SOCKET")
	f.StringVar(&g.pcrs, prefix+"pcrs", "", "seal to these PCRs as they are now, for example `7,11`")
	f.StringVar(&g.key, prefix+"policy-key", "", "PEM `file` with the public key that signs boot states")
	f.StringVar(&g.signed, prefix+"policy", "", "`files` of signed boot states, in systemd-measure's JSON, separated by commas: for example slot A's and slot B's")
	f.StringVar(&g.counter, prefix+"counter", "", "NV `index` of the volume's counter, for example 0x01800112")
	f.StringVar(&g.share, prefix+"share", "", "NV `index` of a key share that destroy undefines, for example 0x01800134")
	f.StringVar(&g.revocation, prefix+"revocation", "", "NV `index` of a counter that revokes copies of the slot, for example 0x01800118")
	f.StringVar(&g.parent, prefix+"parent", "", "`name` of the TPM's storage root key, in hexadecimal, as enrolment learnt it")
	f.StringVar(&g.ownerAuth, prefix+"owner-auth-file", "", "`file` with the owner hierarchy's auth value")
	f.BoolVar(&g.replace, prefix+"unsafe-replace-nv", false, "take NV indices over that are in use: a volume that has them is lost")
	f.StringVar(&g.after, prefix+"after", "", "`latches`, in hexadecimal, of volumes opened earlier in each boot")
	f.StringVar(&g.pin, prefix+"pin-file", "", "`file` with the TPM slot's PIN")
	f.StringVar(&g.passphrase, prefix+"passphrase-file", "", "`file` with a passphrase")
	f.IntVar(&g.workFactor, prefix+"work-factor", 0, "binary `logarithm` of scrypt's cost for a new passphrase slot; 0 means 17, which takes 128 MiB")
	f.StringVar(&g.recipients, prefix+"recipient", "", "age `recipients` of a recovery slot, separated by commas")
	f.StringVar(&g.identityFile, prefix+"identity", "", "`file` with age identities that open a recovery slot")
	f.BoolVar(&g.classic, prefix+"insecure-classic-recipients", false, "admit recipients that are not post-quantum")
	f.BoolVar(&g.noLatch, prefix+"unsafe-no-latch", false, "let the volume be opened more than once in each boot")
}

// named reports whether the flags name a protector.
func (g *guard) named() bool {
	return g.tpm != "" || g.passphrase != "" || g.recipients != "" || g.identityFile != ""
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

// protectors makes what the flags name.
func (g *guard) protectors(a *app) (ps []fscrypt.Protector, err error) {
	if g.tpm != "" {
		p, err := g.tpmProtector(a)
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

// device opens a TPM once.
func (a *app) device(name string) (transport.TPM, error) {
	if d := a.devices[name]; d != nil {
		return d, nil
	}
	var d transport.TPMCloser
	var err error
	if path, ok := strings.CutPrefix(name, "unix:"); ok {
		// One connection for the whole command: a software TPM flushes what a
		// connection loaded when it ends, as the kernel's resource manager does.
		var conn net.Conn
		if conn, err = net.Dial("unix", path); err == nil {
			d = transport.FromReadWriteCloser(conn)
		}
	} else {
		d, err = linuxtpm.Open(name)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", fscrypt.ErrUnavailable, err)
	}
	a.devices[name] = d
	return d, nil
}

// kept opens -keep once.
func (a *app) kept() (*fscrypt.Keep, error) {
	if a.keepFile == "" || a.keep != nil {
		return a.keep, nil
	}
	f, err := os.OpenFile(a.keepFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	a.keep, err = fscrypt.NewKeep(f)
	if errors.Is(err, fscrypt.ErrUnsupported) {
		err = wire.Usage("-keep: %w", err)
	}
	return a.keep, err
}

func parseLatch(text string) ([]byte, error) {
	b, err := hex.DecodeString(text)
	if err == nil && len(b) != 32 {
		err = fmt.Errorf("%d bytes, want 32", len(b))
	}
	return b, err
}

func (g *guard) tpmProtector(a *app) (_ *fscrypt.TPM, err error) {
	p := &fscrypt.TPM{UnsafeNoLatch: g.noLatch, UnsafeReplaceNV: g.replace}
	for _, i := range []struct {
		text string
		to   *tpm2.TPMHandle
	}{{g.counter, &p.Counter}, {g.share, &p.Share}, {g.revocation, &p.Revocation}} {
		if i.text == "" {
			continue
		}
		n, err := strconv.ParseUint(i.text, 0, 32)
		if err == nil && n>>24 != 1 {
			err = errors.New("want 0x01000000 to 0x01ffffff")
		}
		if err != nil {
			return nil, wire.Usage("NV index %q: %w", i.text, err)
		}
		*i.to = tpm2.TPMHandle(n)
	}
	if g.after != "" {
		for l := range strings.SplitSeq(g.after, ",") {
			b, err := parseLatch(l)
			if err != nil {
				return nil, wire.Usage("-after: %w", err)
			}
			p.After = append(p.After, b)
		}
	}
	if p.ParentName, err = hex.DecodeString(g.parent); err != nil {
		return nil, wire.Usage("-parent: %w", err)
	}
	for _, f := range []struct {
		name string
		to   *[]byte
	}{{g.pin, &p.PIN}, {g.ownerAuth, &p.OwnerAuth}} {
		if f.name == "" {
			continue
		}
		line, err := readLine(f.name)
		if err != nil {
			return nil, err
		}
		*f.to = []byte(line)
	}
	if p.Keep, err = a.kept(); err != nil {
		return nil, err
	}
	if g.key == "" && g.pcrs == "" {
		return nil, wire.Usage("-tpm needs -policy-key and -policy, or -pcrs")
	}
	if g.pcrs != "" {
		if _, err := g.numbers(); err != nil {
			return nil, err
		}
	}
	if p.Device, err = a.device(g.tpm); err != nil {
		return nil, err
	}
	p.Policies, err = g.policies(p.Device)
	return p, err
}

// policies are the owner's signed boot states, or the PCRs as they are.
func (g *guard) policies(t transport.TPM) (ps []fscrypt.BootPolicy, err error) {
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
		for name := range strings.SplitSeq(g.signed, ",") {
			signed, err := readFile(name)
			if err != nil {
				return nil, err
			}
			p, err := bootpolicy.Signed(key, signed)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			ps = append(ps, p)
		}
		return ps, nil
	}
	pcrs, err := g.numbers()
	if err != nil {
		return nil, err
	}
	values := map[int][]byte{}
	for _, n := range pcrs {
		if values[n], err = readPCR(t, n); err != nil {
			return nil, err
		}
	}
	p, err := bootpolicy.Literal(crypto.SHA256, values)
	return []fscrypt.BootPolicy{p}, err
}

// numbers are the PCRs of -pcrs.
func (g *guard) numbers() (pcrs []int, err error) {
	for s := range strings.SplitSeq(g.pcrs, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 || n > 23 {
			return nil, wire.Usage("PCR %q: want 0 to 23", s)
		}
		pcrs = append(pcrs, n)
	}
	return pcrs, nil
}

func readPCR(t transport.TPM, n int) ([]byte, error) {
	sel := make([]byte, 3)
	sel[n/8] = 1 << (n % 8)
	rsp, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: sel}}}}.Execute(t)
	if rc := tpm2.TPMRC(0); err != nil && !errors.As(err, &rc) {
		return nil, fmt.Errorf("read PCR %d: %w: %w", n, fscrypt.ErrUnavailable, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read PCR %d: %w", n, err)
	}
	if len(rsp.PCRValues.Digests) != 1 {
		return nil, errors.New("the TPM's SHA-256 bank is not active")
	}
	return rsp.PCRValues.Digests[0].Buffer, nil
}
