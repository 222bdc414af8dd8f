package attest_test

import (
	"bytes"
	"crypto/x509"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/internal/softnode"
	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

// writeNV defines and fills an NV index as a maker's line does.
func writeNV(t *testing.T, dev *tpmtest.TPM, index tpm2.TPMHandle, content []byte) {
	t.Helper()
	public := tpm2.TPMSNVPublic{
		NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(content)),
		Attributes: tpm2.TPMANV{OwnerWrite: true, AuthRead: true, NoDA: true},
	}
	_, err := tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHOwner, PublicInfo: tpm2.New2B(public)}.Execute(dev)
	require.NoError(t, err)
	for off := 0; off < len(content); off += 512 {
		pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(dev)
		require.NoError(t, err)
		_, err = tpm2.NVWrite{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, NVIndex: tpm2.NamedHandle{Handle: index, Name: pub.NVName},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: content[off:min(off+512, len(content))]}, Offset: uint16(off),
		}.Execute(dev)
		require.NoError(t, err)
	}
}

// Each endorsement key of the profile enrols, with its certificate and the
// issuer's read from NV, also where the key is not persistent.
func TestEveryEKTemplateEnrols(t *testing.T) {
	onEach(t, func(t *testing.T, dev *tpmtest.TPM, _ attest.Endorsers) {
		var enrolled []string
		maker := softnode.NewMaker()
		writeNV(t, dev, tpm.NVEKChainFirst, maker.Issuer.Raw)
		attest.EKTemplates(func(name string, index tpm2.TPMHandle, template tpm2.TPMTPublic) {
			if _, err := (tpm2.NVReadPublic{NVIndex: index}).Execute(dev); err == nil {
				return // the TPM came with a certificate, which other tests take
			}
			k, err := tpm.CreatePrimary(dev, tpm2.TPMRHEndorsement, nil, template)
			if err != nil {
				t.Logf("%s: this TPM makes no such key: %v", name, err)
				return
			}
			require.NoError(t, k.Flush())
			key, err := tpm2.Pub(k.Public)
			require.NoError(t, err)
			writeNV(t, dev, index, maker.Sign(maker.EKTemplate(key), key))
			n := open(t, dev, attest.NodeConfig{EKName: k.Name.Buffer})
			assert.Equal(t, name, n.EndorsementKey().Template)
			require.NotEmpty(t, n.EndorsementKey().Chain)
			endorsers := attest.Endorsers{Anchors: []*x509.Certificate{maker.Root}}
			c := newCloud(t, endorsers)
			tlsKey, _ := c.enroll(n)
			_, err = c.attest(n, session(t, n, tlsKey))
			require.NoError(t, err)
			enrolled = append(enrolled, name)
		})
		assert.Contains(t, enrolled, "H-6", "RSA-3072")
	})
}

// A maker's nonce beside the certificate goes into the endorsement key.
func TestEndorsementKeyWithNonce(t *testing.T) {
	onEach(t, func(t *testing.T, dev *tpmtest.TPM, _ attest.Endorsers) {
		maker := softnode.NewMaker()
		nonce := []byte("nonce of this very part")
		template := must(attest.EKPublic("L-2", nil))
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: append(bytes.Clone(nonce), make([]byte, 32-len(nonce))...)}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
		})
		k, err := tpm.CreatePrimary(dev, tpm2.TPMRHEndorsement, nil, template)
		require.NoError(t, err)
		require.NoError(t, k.Flush())
		key, err := tpm2.Pub(k.Public)
		require.NoError(t, err)
		if pub, err := (tpm2.NVReadPublic{NVIndex: tpm.NVEKCertP256}).Execute(dev); err == nil {
			_, err = tpm2.NVUndefineSpace{AuthHandle: tpm2.TPMRHPlatform, NVIndex: tpm2.NamedHandle{Handle: tpm.NVEKCertP256, Name: pub.NVName}}.Execute(dev)
			if err != nil {
				_, err = tpm2.NVUndefineSpace{AuthHandle: tpm2.TPMRHOwner, NVIndex: tpm2.NamedHandle{Handle: tpm.NVEKCertP256, Name: pub.NVName}}.Execute(dev)
			}
			require.NoError(t, err)
			_ = evictIfThere(dev, 0x8101000A)
		}
		writeNV(t, dev, tpm.NVEKCertP256, maker.Sign(maker.EKTemplate(key), key))
		_, err = attest.Open(t.Context(), dev, attest.NodeConfig{EKName: k.Name.Buffer})
		require.Error(t, err, "without its nonce the key can't be made again")
		writeNV(t, dev, tpm.NVEKCertP256+1, nonce)
		n := open(t, dev, attest.NodeConfig{EKName: k.Name.Buffer})
		assert.Equal(t, "L-2", n.EndorsementKey().Template)
		c := newCloud(t, attest.Endorsers{Anchors: []*x509.Certificate{maker.Root}, Intermediates: []*x509.Certificate{maker.Issuer}})
		c.enroll(n)
	})
}

func evictIfThere(dev *tpmtest.TPM, at tpm2.TPMHandle) error {
	k, err := tpm.ReadKey(dev, at)
	if err != nil {
		return nil
	}
	_, err = tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: k.Named(), PersistentHandle: at}.Execute(dev)
	return err
}

// The issuers of an EK certificate as makers really leave them: several in one
// index, one over two, behind headers, padded.
func TestEKIssuersInNV(t *testing.T) {
	maker, other := softnode.NewMaker(), softnode.NewMaker()
	a, b := maker.Issuer.Raw, maker.Root.Raw
	header := func(der []byte) []byte {
		return append([]byte{0x10, 1, 0, byte(len(der) >> 8), byte(len(der))}, der...)
	}
	pad := bytes.Repeat([]byte{0xff}, 100)
	for name, contents := range map[string][][]byte{
		"one after the other":           {append(bytes.Clone(a), b...)},
		"one in each":                   {a, b},
		"padded":                        {append(bytes.Clone(a), pad...), append(bytes.Clone(b), make([]byte, 50)...)},
		"padded inside":                 {append(append(bytes.Clone(a), pad...), b...)},
		"one over two":                  {a[:100], append(bytes.Clone(a[100:]), b[:1]...), b[1:]},
		"behind headers":                {header(a), append(header(b), pad...)},
		"garbage between":               {a, []byte("no certificate"), b},
		"garbage behind a certificate":  {append(bytes.Clone(a), 7, 7, 7), b},
		"a certificate that is damaged": {a, append(bytes.Clone(other.Root.Raw[:40]), make([]byte, len(other.Root.Raw)-40)...), b},
	} {
		certs := attest.CertificatesIn(contents)
		require.Len(t, certs, 2, name)
		assert.Equal(t, a, certs[0].Raw, name)
		assert.Equal(t, b, certs[1].Raw, name)
	}
	for name, contents := range map[string][][]byte{
		"nothing": nil, "empty": {nil}, "cut short": {a[:len(a)-1]}, "padding": {pad}, "huge": {{0x30, 0x82, 0xff, 0xff}, make([]byte, 70000)},
	} {
		assert.Empty(t, attest.CertificatesIn(contents), name)
	}
	many := bytes.Repeat(a, 100)
	assert.Len(t, attest.CertificatesIn([][]byte{many}), 32, "bounded")
}

// RSA-4096 is an endorsement key that no software TPM makes: the credential
// and the imported key are opened as TPM 2.0 Library part 1, annex B, says.
func TestRSA4096EndorsementKey(t *testing.T) {
	for _, bits := range []int{3072, 4096} {
		m := softnode.NewMaker()
		n := softnode.NewNodeRSA(m, bits)
		c := newCloud(t, attest.Endorsers{Anchors: []*x509.Certificate{m.Root}})
		_, err := softEnroll(c, n)
		require.NoError(t, err, bits)
		_, err = softAttest(c, n)
		require.NoError(t, err, bits)
	}
}
