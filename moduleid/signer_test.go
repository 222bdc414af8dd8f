package moduleid_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
)

// Any crypto.Signer with its chain is a chip: a PIV card, a PKCS#11 token, a
// key in a TPM.
func ExampleFromSigner() {
	ca, _ := moduleidtest.NewCA("Owner's Module CA")
	key, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader) // in place of a token's
	cert, _ := ca.Issue("token 1", key.Public(), nil)

	chip, err := moduleid.FromSigner(key, []*x509.Certificate{cert})
	if err != nil {
		log.Fatal(err)
	}
	defer chip.Close()
	challenge := moduleid.NewChallenge("pole-7", "usb1")
	evidence, err := chip.Prove(context.Background(), challenge)
	if err != nil {
		log.Fatal(err)
	}
	verifier := &moduleid.Verifier{
		Schemes:             []moduleid.Scheme{moduleid.SignerScheme()},
		Classes:             map[string]moduleid.Class{"token": {Members: ca.Pool()}},
		Connectors:          map[string]moduleid.Connector{"usb1": {Classes: []string{"token"}}},
		UnsafeNoRevocations: true, // for the example: see package revocation
	}
	id, err := verifier.Verify(challenge, evidence)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(id.Class(), id.Certificate().Subject)
	// Output: token CN=token 1
}

func TestSignersOfEveryKind(t *testing.T) {
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	for name, key := range map[string]crypto.Signer{"P-256": p256, "Ed25519": ed, "RSA-2048": rsaKey} {
		t.Run(name, func(t *testing.T) {
			cert, err := ca.Issue("token", key.Public(), nil)
			require.NoError(t, err)
			require.NoError(t, verifySigner(t, ca.Pool(), key, cert))
			c := moduleid.NewChallenge(node, "bay1")
			chip, err := moduleid.FromSigner(key, []*x509.Certificate{cert})
			require.NoError(t, err)
			e, err := chip.Prove(t.Context(), c)
			require.NoError(t, err)
			for i := range e.Signature {
				e.Signature[i] ^= 1
				_, err = moduleid.SignerScheme().Check(c, e)
				require.Error(t, err, "byte %d of the signature", i)
				e.Signature[i] ^= 1
			}
			e.Message = []byte{1}
			_, err = moduleid.SignerScheme().Check(c, e)
			require.Error(t, err)
		})
	}
	other, err := ca.Issue("token", ed.Public(), nil)
	require.NoError(t, err)
	_, err = moduleid.FromSigner(p256, []*x509.Certificate{other})
	require.ErrorContains(t, err, "does not certify")
	_, err = moduleid.FromSigner(nil, nil)
	require.Error(t, err)
}

// hanging is a token whose driver does not come back before it is let go.
type hanging struct {
	crypto.Signer
	let    chan struct{}
	closed chan struct{}
}

func (h *hanging) Sign(r io.Reader, d []byte, o crypto.SignerOpts) ([]byte, error) {
	<-h.let
	return h.Signer.Sign(r, d, o)
}

func (h *hanging) Close() error { close(h.closed); return nil }

func TestHangingSignerEndsWithTheContext(t *testing.T) {
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	cert, err := ca.Issue("token", key.Public(), nil)
	require.NoError(t, err)
	h := &hanging{Signer: key, let: make(chan struct{}), closed: make(chan struct{})}
	chip, err := moduleid.FromSigner(h, []*x509.Certificate{cert})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = chip.Prove(ctx, moduleid.NewChallenge(node, "bay1"))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, chip.Close(), "which does not wait for ever")
	select {
	case <-h.closed:
		require.Fail(t, "a signer was closed while it signs")
	default:
	}
	close(h.let)
	within(t, func() { <-h.closed })
	_, err = chip.Prove(t.Context(), moduleid.NewChallenge(node, "bay1"))
	require.ErrorIs(t, err, moduleid.ErrAbsent)
}
