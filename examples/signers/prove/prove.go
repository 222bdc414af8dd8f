// Package prove does with a crypto.Signer what a node and its verifier do with
// any other module: challenge, evidence, verdict.
package prove

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/trusttree/trusttree/moduleid"
)

// Exit codes of the commands here.
const (
	ExitFailed      = 1
	ExitUsage       = 2
	ExitRefused     = 3
	ExitUnavailable = 4
)

const timeout = 10 * time.Second

// Once makes the signer prove itself once, and prints who it is. Roots is a
// file with the owner's CAs for such tokens.
func Once(ctx context.Context, w io.Writer, signer crypto.Signer, chain []*x509.Certificate, roots string) error {
	pool := x509.NewCertPool()
	certs, err := Certificates(roots)
	if err != nil {
		return err
	}
	for _, c := range certs {
		pool.AddCert(c)
	}
	chip, err := moduleid.FromSigner(signer, chain)
	if err != nil {
		return err
	}
	defer chip.Close()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	challenge := moduleid.NewChallenge("workbench", "usb1")
	evidence, err := chip.Prove(ctx, challenge)
	if err != nil {
		return err
	}
	verifier := &moduleid.Verifier{
		Schemes:    []moduleid.Scheme{moduleid.SignerScheme()},
		Classes:    map[string]moduleid.Class{"token": {Members: pool}},
		Connectors: map[string]moduleid.Connector{"usb1": {Classes: []string{"token"}}},
		// A look at what is there: a node consults package revocation.
		UnsafeNoRevocations: true,
	}
	id, err := verifier.Verify(challenge, evidence)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "authenticated: %s, ID %s\n", id.Certificate().Subject, id.ID())
	return nil
}

// Code is the exit code for an error of Once or of reaching the token.
func Code(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, moduleid.ErrRefused):
		return ExitRefused
	case errors.Is(err, ErrUsage):
		return ExitUsage
	case errors.Is(err, ErrUnavailable):
		return ExitUnavailable
	}
	return ExitFailed
}

// ErrUsage and ErrUnavailable are classes of errors with codes of their own.
var (
	ErrUsage       = errors.New("usage")
	ErrUnavailable = errors.New("the token is not available")
)

const maxFile = 1 << 20

// Certificates reads PEM certificates, or DER ones after each other.
func Certificates(name string) ([]*x509.Certificate, error) {
	data, err := readFile(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	der := data
	if b, _ := pem.Decode(data); b != nil {
		der = nil
		for rest := data; ; {
			if b, rest = pem.Decode(rest); b == nil {
				break
			}
			if b.Type == "CERTIFICATE" {
				der = append(der, b.Bytes...)
			}
		}
	}
	certs, err := x509.ParseCertificates(der)
	if err != nil || len(certs) == 0 {
		return nil, fmt.Errorf("%w: %s holds no certificate: %w", ErrUsage, name, err)
	}
	return certs, nil
}

// PIN reads the token's PIN from a file, which keeps it out of the process
// list and of the shell's history. Without a name there is none.
func PIN(name string) (string, error) {
	if name == "" {
		return "", nil
	}
	data, err := readFile(name)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrUsage, err)
	}
	return strings.TrimSpace(string(data)), nil
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxFile)
	}
	return data, err
}
