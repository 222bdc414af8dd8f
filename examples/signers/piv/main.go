// Piv makes a key on a PIV card (NIST SP 800-73) prove itself as a module, such
// as the card of a technician's tool.
//
//	piv -reader yubikey -slot 9c -root owner-ca.pem -pin-file pin
//
// It talks to the PC/SC daemon through a C library: it needs cgo and
// libpcsclite, which is why it is a Go module of its own.
//
// Exit status: 0 authenticated, 1 failed, 2 usage, 3 refused, 4 no such card.
package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/go-piv/piv-go/v2/piv"

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
		fmt.Fprintln(stderr, "piv:", err)
	}
	return prove.Code(err)
}

var slots = map[string]piv.Slot{"9a": piv.SlotAuthentication, "9c": piv.SlotSignature, "9d": piv.SlotKeyManagement, "9e": piv.SlotCardAuthentication}

func once(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var reader, slotName, root, chainFile, pinFile string
	fs := flag.NewFlagSet("piv", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&reader, "reader", "", "part of the card reader's name; empty takes the only one")
	fs.StringVar(&slotName, "slot", "9c", "slot of the key: 9a, 9c, 9d or 9e")
	fs.StringVar(&root, "root", "", "file with the CAs that certify such cards, PEM or DER")
	fs.StringVar(&chainFile, "chain", "", "file with the certificate and its issuers, leaf first; without it, the card's own certificate")
	fs.StringVar(&pinFile, "pin-file", "", "file with the PIN")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return fmt.Errorf("%w: %w", prove.ErrUsage, err)
	}
	slot, ok := slots[slotName]
	if !ok || root == "" || fs.NArg() > 0 {
		return fmt.Errorf("%w: -root is needed, and -slot is 9a, 9c, 9d or 9e", prove.ErrUsage)
	}
	pin, err := prove.PIN(pinFile)
	if err != nil {
		return err
	}
	card, err := open(reader)
	if err != nil {
		return err
	}
	defer card.Close()
	var chain []*x509.Certificate
	if chainFile != "" {
		chain, err = prove.Certificates(chainFile)
	} else {
		var own *x509.Certificate
		if own, err = card.Certificate(slot); err != nil {
			err = fmt.Errorf("%w: no certificate in slot %s: give it with -chain: %w", prove.ErrUnavailable, slotName, err)
		}
		chain = []*x509.Certificate{own}
	}
	if err != nil {
		return err
	}
	auth := piv.KeyAuth{PIN: pin, PINPolicy: piv.PINPolicyNever}
	if pin != "" {
		auth.PINPolicy = piv.PINPolicyAlways
	}
	key, err := card.PrivateKey(slot, chain[0].PublicKey, auth)
	if err != nil {
		return err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return fmt.Errorf("the key in slot %s does not sign", slotName)
	}
	return prove.Once(ctx, stdout, signer, chain, root)
}

// open finds the one card whose reader's name has the part in it.
func open(part string) (*piv.YubiKey, error) {
	names, err := piv.Cards()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", prove.ErrUnavailable, err)
	}
	var found []string
	for _, n := range names {
		if strings.Contains(strings.ToLower(n), strings.ToLower(part)) {
			found = append(found, n)
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("%w: %d of the readers %q have %q in their name", prove.ErrUnavailable, len(found), names, part)
	}
	card, err := piv.Open(found[0])
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", prove.ErrUnavailable, found[0], err)
	}
	return card, nil
}
