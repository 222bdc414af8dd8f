// Command softtpm serves a software TPM on a unix socket, for trying
// examples/node or tpm2-tools by hand where there is no TPM. It protects
// nothing.
//
//	softtpm -dir DIR [-socket PATH] [-boot LOG]   serve the TPM that is kept in DIR
//	softtpm -connect PATH -boot LOG               give the TPM that is served there a boot
//	softtpm -connect PATH                         join standard input and output to a socket
//
// DIR holds the TPM's state, its maker (maker.json) and the maker's certificates
// to pin (maker.pem: root and EK issuer). The node opens the socket as
// "unix:PATH"; tpm2-tools use it with -T "cmd:softtpm -connect PATH". Each
// start is a power-up of the TPM; LOG is the event log of a real boot, whose
// measurements the TPM is then given, as firmware and kernel would.
//
// Exit codes: 0 done, 1 failed, 2 usage, 4 unavailable.
package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/attest/attesttest"
	"github.com/trusttree/trusttree/secureboot/eventlog"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := command(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func command(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("softtpm", flag.ContinueOnError)
	flags.SetOutput(stderr)
	dir := flags.String("dir", "", "directory of the TPM's state; made when missing")
	socket := flags.String("socket", "", "unix socket to serve on (default DIR/tpm.sock)")
	boot := flags.String("boot", "", "event `log` of the boot whose measurements the TPM gets (default: none)")
	connect := flags.String("connect", "", "unix socket to join standard input and output to")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if flags.NArg() > 0 || (*dir == "") == (*connect == "") {
		fmt.Fprintln(stderr, "softtpm: say either -dir DIR (serve a TPM) or -connect PATH (talk to one)")
		return 2
	}
	var err error
	code := 1
	if *connect != "" {
		code = 4
		if *boot != "" {
			err = measureAt(ctx, *connect, *boot)
		} else {
			err = join(ctx, *connect, stdin, stdout)
		}
	} else {
		if *socket == "" {
			*socket = filepath.Join(*dir, "tpm.sock")
		}
		err = serve(ctx, *dir, *socket, *boot, stdout)
	}
	if err != nil {
		fmt.Fprintln(stderr, "softtpm:", err)
		return code
	}
	return 0
}

func serve(ctx context.Context, dir, socket, boot string, stdout io.Writer) error {
	maker, err := attesttest.OpenMaker(dir)
	if err != nil {
		return err
	}
	l, err := listen(socket)
	if err != nil {
		return err
	}
	defer l.Close()
	tpm, err := maker.OpenTPM(filepath.Join(dir, "tpm"))
	if err != nil {
		return err
	}
	if boot != "" {
		if err := measure(tpm, boot); err != nil {
			return err
		}
	}
	pin := filepath.Join(dir, "maker.pem")
	if err := writePin(pin, maker); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "TPM at unix:%s; pin %s as its maker\n", socket, pin)
	return tpm.Serve(ctx, l)
}

// measure gives the TPM what a boot measured.
func measure(tpm *attesttest.TPM, name string) error {
	parsed, err := readLog(name)
	if err != nil {
		return err
	}
	var measured []attesttest.Measurement
	for e := range parsed.Extends() {
		measured = append(measured, attesttest.Measurement{PCR: e.PCR, Digests: e.Digests})
	}
	return tpm.Boot(measured...)
}

// measureAt does it to a TPM that was powered up just now and is served at a
// socket, such as swtpm's.
func measureAt(ctx context.Context, socket, name string) error {
	parsed, err := readLog(name)
	if err != nil {
		return err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("%w (is a TPM served there?)", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	tpm := transport.FromReadWriter(conn)
	algs := map[crypto.Hash]tpm2.TPMAlgID{crypto.SHA1: tpm2.TPMAlgSHA1, crypto.SHA256: tpm2.TPMAlgSHA256, crypto.SHA384: tpm2.TPMAlgSHA384, crypto.SHA512: tpm2.TPMAlgSHA512}
	for e := range parsed.Extends() {
		var digests []tpm2.TPMTHA
		for bank, digest := range e.Digests {
			if alg, ok := algs[bank]; ok {
				digests = append(digests, tpm2.TPMTHA{HashAlg: alg, Digest: digest})
			}
		}
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(e.PCR), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: digests},
		}.Execute(tpm)
		if err != nil {
			return fmt.Errorf("extend PCR %d: %w", e.PCR, err)
		}
	}
	return nil
}

func readLog(name string) (*eventlog.Log, error) {
	log, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	parsed, err := eventlog.Parse(log, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return parsed, nil
}

// writePin writes the maker's root and the issuers below it: a TPM does not
// always carry the latter, and without them no chain can be built.
func writePin(name string, maker *attesttest.Maker) error {
	var text []byte
	for _, c := range append([]*x509.Certificate{maker.Root}, maker.Intermediates...) {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return os.WriteFile(name, text, 0o644)
}

// listen takes the place of a socket that nobody serves any more, and of no
// other file.
func listen(socket string) (net.Listener, error) {
	fi, err := os.Lstat(socket)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case fi.Mode()&fs.ModeSocket == 0:
		return nil, fmt.Errorf("%s is there and is no socket; choose another -socket", socket)
	default:
		if c, err := net.Dial("unix", socket); err == nil {
			_ = c.Close()
			return nil, fmt.Errorf("%s is being served already; stop that softtpm first", socket)
		}
		if err := os.Remove(socket); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// join copies both ways until the input ends or the server hangs up.
func join(ctx context.Context, socket string, stdin io.Reader, stdout io.Writer) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("%w (is softtpm serving there?)", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	go func() {
		_, _ = io.Copy(conn, stdin)
		_ = conn.(*net.UnixConn).CloseWrite()
	}()
	_, err = io.Copy(stdout, conn)
	if ctx.Err() != nil {
		return nil
	}
	return err
}
