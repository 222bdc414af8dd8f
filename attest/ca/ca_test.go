package ca_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/ca"
	"github.com/trusttree/trusttree/attest/registry"
)

// A CA whose key is in a file; a key in a TPM or an HSM is a crypto.Signer all
// the same.
func ExampleNew() {
	dir, err := os.MkdirTemp("", "ca")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	// once
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	cert, err := ca.SelfSign("city of example", key, time.Now(), 5*365*24*time.Hour)
	if err != nil {
		log.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		log.Fatal(err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := os.WriteFile(filepath.Join(dir, "ca.key"), block, 0o600); err != nil {
		log.Fatal(err)
	}

	// at every start
	b, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	if err != nil {
		log.Fatal(err)
	}
	p, _ := pem.Decode(b)
	loaded, err := x509.ParsePKCS8PrivateKey(p.Bytes)
	if err != nil {
		log.Fatal(err)
	}
	issuer, err := ca.New(cert, loaded.(*ecdsa.PrivateKey))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(issuer.Certificate().Subject.CommonName)
	// Output: city of example
}

func request(t *testing.T) attest.IssueRequest {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return attest.IssueRequest{
		Device: registry.DeviceID{1}, Key: key.Public(),
		Template: &x509.Certificate{NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature},
	}
}

func TestIntermediateBringsItsChain(t *testing.T) {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	rootCert := sign(t, "root", nil, rootKey, rootKey)
	interKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	inter := sign(t, "issuing", rootCert, interKey, rootKey)
	c, err := ca.New(inter, interKey)
	require.NoError(t, err)
	r := request(t)
	chain, err := c.Issue(t.Context(), r)
	require.NoError(t, err)
	require.Len(t, chain, 2)
	assert.NotEqual(t, chain[0].SerialNumber, big.NewInt(0))
	roots, pool := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(rootCert)
	pool.AddCert(chain[1])
	_, err = chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	require.NoError(t, err)
	again, err := c.Issue(t.Context(), r)
	require.NoError(t, err)
	assert.NotEqual(t, chain[0].SerialNumber, again[0].SerialNumber)
	assert.Nil(t, r.Template.SerialNumber, "the request is left as it was")
}

func sign(t *testing.T, name string, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	self, err := ca.SelfSign(name, key, time.Now(), 48*time.Hour)
	require.NoError(t, err)
	if parent == nil {
		self.MaxPathLen, self.MaxPathLenZero = 1, false
		parent = self
	}
	der, err := x509.CreateCertificate(rand.Reader, self, parent, key.Public(), signer)
	require.NoError(t, err)
	c, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return c
}

func TestCARefuses(t *testing.T) {
	c, err := ca.NewEphemeral("root")
	require.NoError(t, err)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	_, err = ca.New(c.Certificate(), other)
	require.Error(t, err, "another key")
	_, err = ca.New(nil, nil)
	require.Error(t, err)
	r := request(t)
	chain, err := c.Issue(t.Context(), r)
	require.NoError(t, err)
	_, err = ca.New(chain[0], other)
	require.Error(t, err, "a leaf is no CA")
	r.Template.NotAfter = c.Certificate().NotAfter.Add(time.Hour)
	_, err = c.Issue(t.Context(), r)
	require.Error(t, err, "outlives its issuer")
}
