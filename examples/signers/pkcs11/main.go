// Pkcs11 makes a key on a PKCS#11 token prove itself as a module: an HSM, a
// smart card, a TPM behind tpm2-pkcs11.
//
//	pkcs11 -module /usr/lib/softhsm/libsofthsm2.so -token modules -key camera-7 -root owner-ca.pem -pin-file pin
//
// The token's driver is C: this command needs cgo, which is why it is a Go
// module of its own and package moduleid needs none.
//
// Exit status: 0 authenticated, 1 failed, 2 usage, 3 refused, 4 no such token.
package main

import (
	"context"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/ThalesGroup/crypto11"

	"github.com/trusttree/trusttree/examples/signers/prove"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := once(ctx, args, stdout, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "pkcs11:", err)
	}
	return prove.Code(err)
}

func once(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var module, token, key, root, chainFile, pinFile string
	fs := flag.NewFlagSet("pkcs11", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&module, "module", "", "the token's driver, a shared library")
	fs.StringVar(&token, "token", "", "label of the token")
	fs.StringVar(&key, "key", "", "label of the key pair, and of its certificate")
	fs.StringVar(&root, "root", "", "file with the CAs that certify such tokens, PEM or DER")
	fs.StringVar(&chainFile, "chain", "", "file with the certificate and its issuers, leaf first; without it, the token's own certificate")
	fs.StringVar(&pinFile, "pin-file", "", "file with the PIN")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return fmt.Errorf("%w: %w", prove.ErrUsage, err)
	}
	if module == "" || token == "" || key == "" || root == "" || fs.NArg() > 0 {
		return fmt.Errorf("%w: -module, -token, -key and -root are needed", prove.ErrUsage)
	}
	pin, err := prove.PIN(pinFile)
	if err != nil {
		return err
	}
	session, err := crypto11.Configure(&crypto11.Config{Path: module, TokenLabel: token, Pin: pin})
	if err != nil {
		return fmt.Errorf("%w: token %q of %s: %w", prove.ErrUnavailable, token, module, err)
	}
	defer session.Close()
	signer, err := session.FindKeyPair(nil, []byte(key))
	if err != nil || signer == nil {
		return fmt.Errorf("%w: token %q has no key pair %q (%v)", prove.ErrUnavailable, token, key, err)
	}
	var chain []*x509.Certificate
	if chainFile != "" {
		chain, err = prove.Certificates(chainFile)
	} else {
		var own *x509.Certificate
		if own, err = session.FindCertificate(nil, []byte(key), nil); err == nil && own == nil {
			err = fmt.Errorf("%w: token %q has no certificate %q: give it with -chain", prove.ErrUnavailable, token, key)
		}
		chain = []*x509.Certificate{own}
	}
	if err != nil {
		return err
	}
	return prove.Once(ctx, stdout, signer, chain, root)
}
