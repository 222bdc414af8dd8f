// Command softtpm serves a software TPM on a unix socket, for trying
// examples/node or tpm2-tools by hand where there is no TPM. It protects
// nothing.
//
//	softtpm -dir DIR [-socket PATH]   serve the TPM that is kept in DIR
//	softtpm -connect PATH             join standard input and output to a socket
//
// DIR holds the TPM's state, its maker (maker.json) and the maker's certificates
// to pin (maker.pem: root and EK issuer). The node opens the socket as
// "unix:PATH"; tpm2-tools use it with -T "cmd:softtpm -connect PATH". Each
// start is a power-up of the TPM.
//
// Exit codes: 0 done, 1 failed, 2 usage, 4 unavailable.
package main

import (
	"context"
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

	"github.com/trusttree/trusttree/attest/attesttest"
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
		err = join(ctx, *connect, stdin, stdout)
	} else {
		if *socket == "" {
			*socket = filepath.Join(*dir, "tpm.sock")
		}
		err = serve(ctx, *dir, *socket, stdout)
	}
	if err != nil {
		fmt.Fprintln(stderr, "softtpm:", err)
		return code
	}
	return 0
}

func serve(ctx context.Context, dir, socket string, stdout io.Writer) error {
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
	pin := filepath.Join(dir, "maker.pem")
	if err := writePin(pin, maker); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "TPM at unix:%s; pin %s as its maker\n", socket, pin)
	return tpm.Serve(ctx, l)
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
