package attest_test

import (
	"crypto/x509"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/internal/softnode"
	"github.com/trusttree/trusttree/internal/testenv"
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
	slow := []string{"H-6", "H-7"} // RSA-3072 and RSA-4096 take a TPM long to make
	onEach(t, func(t *testing.T, dev *tpmtest.TPM, _ attest.Endorsers) {
		maker := softnode.NewMaker()
		writeNV(t, dev, tpm.NVEKChainFirst, maker.Issuer.Raw)
		attest.EKTemplates(func(name string, index tpm2.TPMHandle, template tpm2.TPMTPublic) {
			if _, err := (tpm2.NVReadPublic{NVIndex: index}).Execute(dev); err == nil || slices.Contains(slow, name) && !testenv.Long() {
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
			t.Logf("%s enrolled", name)
		})
	})
}
