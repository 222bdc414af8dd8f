package softtpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/trusttree/trusttree/internal/durable"
)

// Files of a maker that is kept in a directory.
const (
	makerFile    = "maker.json"
	makerRoot    = "maker-root.pem" // for verifiers to pin
	makerVersion = 1
	maxMakerSize = 64 << 10
)

type makerJSON struct {
	Version int    `json:"version"`
	Root    []byte `json:"root"`
	Issuer  []byte `json:"issuer"`
	Key     []byte `json:"issuer_key"`
}

// OpenMaker returns the manufacturer whose keys are in dir, and makes a new one
// there when there is none. The root's certificate is in maker-root.pem.
func OpenMaker(dir string) (*Maker, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("softtpm: %w", err)
	}
	name := filepath.Join(dir, makerFile)
	fi, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return createMaker(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("softtpm: %w", err)
	}
	if fi.Size() > maxMakerSize {
		return nil, fmt.Errorf("softtpm: %s has %d bytes, limit %d", name, fi.Size(), maxMakerSize)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("softtpm: %w", err)
	}
	m, err := parseMaker(b)
	if err != nil {
		return nil, fmt.Errorf("softtpm: %s: %w", name, err)
	}
	return m, nil
}

func createMaker(dir string) (*Maker, error) {
	m, err := NewMaker()
	if err != nil {
		return nil, err
	}
	key, err := m.key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("softtpm: issuer key: %w", err)
	}
	b, err := json.Marshal(makerJSON{makerVersion, m.Root.Raw, m.Intermediates[0].Raw, key})
	if err != nil {
		return nil, fmt.Errorf("softtpm: encode maker: %w", err)
	}
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.Root.Raw})
	if err := durable.WriteFile(filepath.Join(dir, makerRoot), root, 0o644); err != nil {
		return nil, fmt.Errorf("softtpm: %w", err)
	}
	if err := durable.WriteFile(filepath.Join(dir, makerFile), b, 0o600); err != nil {
		return nil, fmt.Errorf("softtpm: %w", err)
	}
	return m, nil
}

var errMaker = errors.New("not a test maker's file; delete the directory to make a new one")

func parseMaker(b []byte) (*Maker, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var j makerJSON
	if err := d.Decode(&j); err != nil || d.More() {
		return nil, errMaker
	}
	if j.Version != makerVersion {
		return nil, fmt.Errorf("%w: version %d, this program reads %d", errMaker, j.Version, makerVersion)
	}
	root, err := x509.ParseCertificate(j.Root)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMaker, err)
	}
	issuer, err := x509.ParseCertificate(j.Issuer)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMaker, err)
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), j.Key)
	if err != nil || !key.PublicKey.Equal(issuer.PublicKey) {
		return nil, fmt.Errorf("%w: the issuer's key is not its certificate's", errMaker)
	}
	return &Maker{Root: root, Intermediates: []*x509.Certificate{issuer}, key: key}, nil
}
