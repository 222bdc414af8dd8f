package attest_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/internal/softnode"
	"github.com/trusttree/trusttree/attest/registry"
)

// softEnroll enrols a simulated node.
func softEnroll(c *cloud, n *softnode.Node) (*attest.Enrollment, error) {
	ch, err := c.registrar.Begin(c.tb.Context(), n.EnrollmentRequest())
	if err != nil {
		return nil, err
	}
	rsp, err := n.Activate(ch)
	require.NoError(c.tb, err)
	return c.registrar.Complete(c.tb.Context(), rsp)
}

func softAttest(c *cloud, n *softnode.Node) (*attest.Result, error) {
	ch, err := c.verifier.Challenge(c.tb.Context(), n.Session(nil))
	if err != nil {
		return nil, err
	}
	s := n.Session(ch.Nonce)
	return c.verifier.Appraise(c.tb.Context(), s, n.Evidence(c.tb.Context(), s, ch))
}

func softCloud(t testing.TB, change ...func(*attest.RegistrarConfig, *attest.VerifierConfig)) (*cloud, *softnode.Maker) {
	m := softnode.NewMaker()
	return newCloud(t, attest.Endorsers{Anchors: []*x509.Certificate{m.Root}}, change...), m
}

type issuerFunc func(context.Context, attest.IssueRequest) ([]*x509.Certificate, error)

func (f issuerFunc) Issue(ctx context.Context, r attest.IssueRequest) ([]*x509.Certificate, error) {
	return f(ctx, r)
}

// An issuer that signs something else than it was asked for is caught.
func TestIssuerIsChecked(t *testing.T) {
	soft, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	down := errors.New("issuer is down")
	for name, change := range map[string]func(*attest.IssueRequest) error{
		"another key":  func(r *attest.IssueRequest) error { r.Key = soft.Public(); return nil },
		"a CA":         func(r *attest.IssueRequest) error { r.Template.IsCA = true; return nil },
		"signs others": func(r *attest.IssueRequest) error { r.Template.KeyUsage |= x509.KeyUsageCertSign; return nil },
		"valid for years": func(r *attest.IssueRequest) error {
			r.Template.NotAfter = r.Template.NotAfter.Add(9999 * time.Hour)
			return nil
		},
		"another name": func(r *attest.IssueRequest) error { r.Template.ExtraExtensions = nil; return nil },
		"down":         func(*attest.IssueRequest) error { return down },
	} {
		c, m := softCloud(t, func(r *attest.RegistrarConfig, _ *attest.VerifierConfig) {
			inner := r.Issuer
			r.Issuer = issuerFunc(func(ctx context.Context, req attest.IssueRequest) ([]*x509.Certificate, error) {
				copied := *req.Template
				req.Template = &copied
				if err := change(&req); err != nil {
					return nil, err
				}
				return inner.Issue(ctx, req)
			})
		})
		_, err := softEnroll(c, softnode.NewNode(m))
		require.Error(t, err, name)
		assert.Equal(t, name == "down", errors.Is(err, down), name)
	}
}

// IEEE 802.1AR and RFC 4108: the certificate names the hardware module.
func TestCertificateNamesHardwareModule(t *testing.T) {
	c, m := softCloud(t)
	n := softnode.NewNode(m)
	e, err := softEnroll(c, n)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(e.Chain[0])
	require.NoError(t, err)
	assert.Equal(t, "spiffe://city.example/node/"+n.Device.String(), leaf.URIs[0].String())
	assert.Equal(t, n.Device.String(), leaf.Subject.SerialNumber)
	assert.False(t, leaf.IsCA)
	var module struct {
		Type   asn1.ObjectIdentifier
		Serial []byte
	}
	for _, ext := range leaf.Extensions {
		if ext.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) {
			var names []asn1.RawValue
			_, err := asn1.Unmarshal(ext.Value, &names)
			require.NoError(t, err)
			require.Len(t, names, 2)
			var other struct {
				ID    asn1.ObjectIdentifier
				Value asn1.RawValue // [0] EXPLICIT
			}
			_, err = asn1.UnmarshalWithParams(names[1].FullBytes, &other, "tag:0")
			require.NoError(t, err)
			assert.Equal(t, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 8, 4}, other.ID)
			_, err = asn1.Unmarshal(other.Value.Bytes, &module)
			require.NoError(t, err)
		}
	}
	assert.Equal(t, n.Device[:], module.Serial)
	assert.Equal(t, asn1.ObjectIdentifier{2, 23, 133, 1, 2}, module.Type)
}

// A node that enrols another TLS key is not affirmed for it.
func TestNewKeyStartsUnappraised(t *testing.T) {
	c, m := softCloud(t)
	n := softnode.NewNode(m)
	_, err := softEnroll(c, n)
	require.NoError(t, err)
	_, err = softAttest(c, n)
	require.NoError(t, err)
	old := n.Key
	n.Key = softnode.NewKey(softnode.P256(), softnode.KeyAttributes)
	_, err = softEnroll(c, n)
	require.NoError(t, err)
	d, err := c.devices.Get(t.Context(), n.Device)
	require.NoError(t, err)
	assert.Equal(t, registry.Enrolled, d.State)
	n.Key = old
	_, err = softAttest(c, n)
	require.ErrorIs(t, err, attest.ErrKeyMismatch, "the old key's sessions end")
}
