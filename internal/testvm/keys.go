package testvm

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// key is a Secure Boot key with its certificate, in files that sbsign reads.
type key struct {
	keyFile, certFile string
	der               []byte
}

// makeKeys makes PK, KEK, db and the attacker's key.
func makeKeys(dir string) (map[string]*key, error) {
	keys := make(map[string]*key)
	for i, name := range []string{"PK", "KEK", "db", "attacker"} {
		k := &key{keyFile: filepath.Join(dir, name+".key"), certFile: filepath.Join(dir, name+".crt")}
		priv, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return nil, err
		}
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{Organization: []string{"trusttree test"}, CommonName: "trusttree test " + name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(20, 0, 0), SignatureAlgorithm: x509.SHA256WithRSA}
		if k.der, err = x509.CreateCertificate(rand.Reader, tmpl, tmpl, &priv.PublicKey, priv); err != nil {
			return nil, err
		}
		p8, err := x509.MarshalPKCS8PrivateKey(priv)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(k.keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p8}), 0o600); err != nil {
			return nil, err
		}
		if err := os.WriteFile(k.certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.der}), 0o600); err != nil {
			return nil, err
		}
		keys[name] = k
	}
	return keys, nil
}
