package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/trusttree/trusttree/update/repository"
)

func newKey(_ context.Context, a *app, args []string) error {
	out := a.fl.String("out", "", "file for the private key; the public key goes to FILE.pub")
	if err := a.parse(args, 0); err != nil {
		return err
	}
	if *out == "" {
		return usage("-out is missing")
	}
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	pubDER, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return err
	}
	if err := writeNew(*out, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		return err
	}
	return writeNew(*out+".pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pubDER}), 0o644)
}

// writeNew writes a file that must not be there yet: a key is never replaced.
func writeNew(name string, data []byte, perm os.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func readPEM(name string) ([]byte, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM block", name)
	}
	return block.Bytes, nil
}

func readSigners(files []string) ([]crypto.Signer, error) {
	var out []crypto.Signer
	for _, name := range files {
		der, err := readPEM(name)
		if err != nil {
			return nil, err
		}
		key, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			return nil, fmt.Errorf("%s holds no private key in PKCS #8: %w", name, err)
		}
		s, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("%s holds a key that does not sign", name)
		}
		out = append(out, s)
	}
	return out, nil
}

func readPublic(name string) (crypto.PublicKey, error) {
	der, err := readPEM(name)
	if err != nil {
		return nil, err
	}
	pub, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s holds no public key: %w", name, err)
	}
	return pub, nil
}

// role reads a comma-separated list of public key files.
func role(files string, threshold int) (repository.Role, error) {
	r := repository.Role{Threshold: threshold}
	for _, name := range strings.Split(files, ",") {
		if name == "" {
			return r, usage("a public key file is missing")
		}
		pub, err := readPublic(name)
		if err != nil {
			return r, err
		}
		r.Keys = append(r.Keys, pub)
	}
	return r, nil
}

// sign runs where the key is: it needs no repository. The payload is signed as
// TUF wants it for the kind of key.
func sign(_ context.Context, a *app, args []string) error {
	key := a.fl.String("key", "", "private key file")
	in := a.fl.String("in", "", "payload file")
	out := a.fl.String("out", "", "file for the signature, in base64")
	if err := a.parse(args, 0); err != nil {
		return err
	}
	if *key == "" || *in == "" || *out == "" {
		return usage("-key, -in and -out are needed")
	}
	signers, err := readSigners([]string{*key})
	if err != nil {
		return err
	}
	payload, err := os.ReadFile(*in)
	if err != nil {
		return err
	}
	sig, err := signPayload(signers[0], payload)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(payload)
	fmt.Fprintf(a.out, "signed a payload with SHA-256 %x\n", sum)
	return os.WriteFile(*out, []byte(base64.StdEncoding.EncodeToString(sig)+"\n"), 0o644)
}

func signPayload(s crypto.Signer, payload []byte) ([]byte, error) {
	sum := sha256.Sum256(payload)
	switch p := s.Public().(type) {
	case ed25519.PublicKey:
		return s.Sign(nil, payload, crypto.Hash(0))
	case *ecdsa.PublicKey:
		if p.Curve.Params().BitSize == 384 {
			sum := sha512.Sum384(payload)
			return s.Sign(nil, sum[:], crypto.SHA384)
		}
		return s.Sign(nil, sum[:], crypto.SHA256)
	case *rsa.PublicKey:
		return s.Sign(nil, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
	}
	return nil, fmt.Errorf("keys of type %T are not used in TUF", s.Public())
}
