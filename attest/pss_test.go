package attest_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/internal/tpm"
)

// salty is an older TPM: its RSA-PSS signatures have the longest salt that
// fits. It has one RSA key of its own at the TLS key's handle.
type salty struct {
	transport.TPM
	key    *rsa.PrivateKey
	public tpm2.TPMTPublic
}

func (s *salty) Send(command []byte) ([]byte, error) {
	const readPublic, sign = 0x173, 0x15D
	if len(command) < 14 || binary.BigEndian.Uint32(command[10:]) != uint32(tpm.HandleLDevID) {
		return s.TPM.Send(command)
	}
	switch binary.BigEndian.Uint32(command[6:]) {
	case readPublic:
		name, err := tpm2.ObjectName(&s.public)
		if err != nil {
			return nil, err
		}
		b := tpm2.Marshal(tpm2.New2B(s.public))
		b = append(b, tpm2.Marshal(*name)...)
		b = append(b, tpm2.Marshal(*name)...)
		return append(binary.BigEndian.AppendUint32([]byte{0x80, 1}, uint32(10+len(b))), append(make([]byte, 4), b...)...), nil
	case sign:
		in := command[14:]
		in = in[4+binary.BigEndian.Uint32(in):]
		size := int(binary.BigEndian.Uint16(in))
		digest, in := in[2:2+size], in[2+size:]
		scheme := binary.BigEndian.Uint16(in)
		hash := map[int]crypto.Hash{32: crypto.SHA256, 48: crypto.SHA384, 64: crypto.SHA512}[size]
		var sig []byte
		var err error
		if scheme == 0x16 {
			sig, err = rsa.SignPSS(rand.Reader, s.key, hash, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto})
		} else {
			sig, err = rsa.SignPKCS1v15(rand.Reader, s.key, hash, digest)
		}
		if err != nil {
			return nil, err
		}
		b := bytes.Clone(in[:4]) // scheme and hash
		b = binary.BigEndian.AppendUint16(b, uint16(len(sig)))
		b = append(b, sig...)
		rsp := append([]byte{0x80, 2}, make([]byte, 8)...)
		rsp = binary.BigEndian.AppendUint32(rsp, uint32(len(b)))
		rsp = append(append(rsp, b...), 0, 0, 1, 0, 0)
		binary.BigEndian.PutUint32(rsp[2:], uint32(len(rsp)))
		return rsp, nil
	}
	return nil, errors.New("not for this key")
}

// A TPM whose RSA-PSS salt is not the one TLS wants is found out, and its key
// serves TLS 1.2 with PKCS #1 v1.5 only, before a peer refuses a handshake.
func TestLongRSAPSSSaltIsProbed(t *testing.T) {
	dev, endorsers := newTPM(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	old := &salty{TPM: dev.Device, key: key, public: tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048}),
		Unique:           tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()}),
	}}
	n := open(t, old, attest.NodeConfig{Endorsers: endorsers, KeyAlgorithm: "RSA-2048"})
	c := newCloud(t, endorsers)
	k, err := n.DeviceKey(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []tls.SignatureScheme{tls.PKCS1WithSHA256, tls.PKCS1WithSHA384, tls.PKCS1WithSHA512}, k.SignatureAlgorithms())
	chain, err := c.ca.Issue(t.Context(), attest.IssueRequest{Key: k.Public(), Template: &x509.Certificate{
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}})
	require.NoError(t, err)
	cert := tls.Certificate{Certificate: [][]byte{chain[0].Raw}, PrivateKey: k, SupportedSignatureAlgorithms: k.SignatureAlgorithms()}
	require.NoError(t, handshake(t, c, cert, tls.VersionTLS12))
	require.Error(t, handshake(t, c, cert, tls.VersionTLS13), "refused before anything is signed")
	cert.SupportedSignatureAlgorithms = nil
	require.Error(t, handshake(t, c, cert, tls.VersionTLS13), "what would happen without the probe")
	_, err = k.Sign(nil, make([]byte, 32), &rsa.PSSOptions{SaltLength: 20, Hash: crypto.SHA256})
	require.Error(t, err, "a salt that no TPM makes")
}
