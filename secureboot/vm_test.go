package secureboot_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testvm"
	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/bootpolicy"
	"github.com/trusttree/trusttree/secureboot/predict"
)

// fresh turns what a boot brought back into evidence: its quote must verify
// over all PCRs with the nonce that the machine was given.
func fresh(t *testing.T, r *testvm.Result) secureboot.Evidence {
	t.Helper()
	ev := secureboot.Evidence{Bank: crypto.SHA256, EventLog: r.Files["binary_bios_measurements"], IMALog: r.Files["ima_binary_runtime_measurements"]}
	ev.PCRs = pcrsOf(t, r.Files["pcrs.txt"], crypto.SHA256)
	quoted, att, err := r.Files["quote_sha256.tpms_attest"], (*tpm2.TPMSAttest)(nil), error(nil)
	att, err = tpm2.Unmarshal[tpm2.TPMSAttest](quoted)
	require.NoError(t, err)
	require.Equal(t, r.Files["nonce.bin"], att.ExtraData.Buffer)
	info, err := att.Attested.Quote()
	require.NoError(t, err)
	h := sha256.New()
	for pcr := range 24 {
		h.Write(ev.PCRs[pcr])
	}
	require.Equal(t, h.Sum(nil), info.PCRDigest.Buffer)
	b, err := tpm2.Unmarshal[tpm2.TPM2BPublic](r.Files["ak_pub.tpm2b"])
	require.NoError(t, err)
	pub, err := b.Contents()
	require.NoError(t, err)
	point, err := pub.Unique.ECC()
	require.NoError(t, err)
	sig, err := tpm2.Unmarshal[tpm2.TPMTSignature](r.Files["quote_sha256.tpmt_signature"])
	require.NoError(t, err)
	ec, err := sig.Signature.ECDSA()
	require.NoError(t, err)
	der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(ec.SignatureR.Buffer), new(big.Int).SetBytes(ec.SignatureS.Buffer)})
	require.NoError(t, err)
	raw := make([]byte, 65)
	raw[0] = 4
	new(big.Int).SetBytes(point.X.Buffer).FillBytes(raw[1:33])
	new(big.Int).SetBytes(point.Y.Buffer).FillBytes(raw[33:])
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), raw)
	require.NoError(t, err)
	digest := sha256.Sum256(quoted)
	require.True(t, ecdsa.VerifyASN1(key, digest[:], der), "quote")
	return ev
}

func mustBoot(t *testing.T, vm *testvm.VM, uki []byte, task map[string][]byte) *testvm.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	r, err := vm.BootUKI(ctx, uki, task)
	if err != nil && r != nil {
		t.Logf("console: %q", r.Console[max(0, len(r.Console)-2000):])
	}
	require.NoError(t, err)
	t.Logf("booted in %v", r.Wall)
	return r
}

// TestRealMachine boots a UEFI machine, learns from it, predicts its next
// image, seals a secret to that image before it has ever run, and boots it.
func TestRealMachine(t *testing.T) {
	if testing.Short() {
		t.Skip("boots machines")
	}
	vm := testvm.New(t, "on")
	image := func(im testvm.Image) []byte {
		b, err := vm.UKI(t.Context(), im)
		require.NoError(t, err)
		return b
	}
	vendor, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	v1, v2 := image(testvm.Image{}), image(withSignedPCR11(t, image, testvm.Image{Cmdline: "node.release=2"}, vendor))

	// The vendor predicts release 2 from its files, and signs its PCR values.
	u2, err := predict.MeasureUKI(bytes.NewReader(v2), int64(len(v2)), crypto.SHA256)
	require.NoError(t, err)
	keys, err := enrolled(t, vm).Variant("keys", crypto.SHA256, testvm.Owner, vm.Certificate("db"))
	require.NoError(t, err)
	release2 := u2.Variant("release 2", predict.Boot{})
	predicted, err := predict.Values(crypto.SHA256, []secureboot.Component{{Name: "keys", Variants: []secureboot.Variant{keys}}, {Name: "system", Variants: []secureboot.Variant{release2}}})
	require.NoError(t, err)
	require.Len(t, predicted, 1)
	signed, err := bootpolicy.SignPCRs(vendor, crypto.SHA256, map[int][]byte{4: predicted[0][4], 7: predicted[0][7], 11: predicted[0][11]})
	require.NoError(t, err)
	sealer, err := bootpolicy.Signed(vendor.Public(), nil)
	require.NoError(t, err)

	// Release 1 runs and seals.
	secret := []byte("volume key of this node")
	r1 := mustBoot(t, vm, v1, map[string][]byte{"seal.policy": sealer.Digest(), "seal.secret": secret})
	policy, err := secureboot.Learn(secureboot.LearnOptions{Name: "vm", Serial: 1, NotAfter: nextYear}, fresh(t, r1))
	require.NoError(t, err)
	require.Equal(t, secureboot.Affirming, policy.Appraise(fresh(t, r1), now).Status)
	require.NotEmpty(t, r1.Files["sealed.blob"])

	// Release 2 boots with the values that were predicted, and unseals.
	spki, err := x509.MarshalPKIXPublicKey(vendor.Public())
	require.NoError(t, err)
	unseal := map[string][]byte{"unseal.blob": r1.Files["sealed.blob"], "unseal.pcrs": signed, "unseal.key": spki}
	r2 := mustBoot(t, vm, v2, unseal)
	ev2 := fresh(t, r2)
	for _, pcr := range []int{4, 7, 9, 11} {
		assert.Equal(t, predicted[0][pcr], ev2.PCRs[pcr], "predicted PCR %d", pcr)
	}
	assert.Equal(t, secret, r2.Files["unsealed.secret"])

	// Release 2 is refused until the policy has its reference values.
	assert.Equal(t, secureboot.Contraindicated, policy.Appraise(ev2, now).Status)
	for i := range policy.Components {
		if c := &policy.Components[i]; c.Name == "system" {
			c.Variants = append(c.Variants, release2)
		}
	}
	got := policy.Appraise(ev2, now)
	assert.Equal(t, secureboot.Affirming, got.Status, "%v", got.Findings)

	// Secure Boot off in the firmware's menu: the same image boots, does not
	// unseal, and is not affirmed.
	require.NoError(t, vm.SetSecureBoot(false))
	r3 := mustBoot(t, vm, v2, unseal)
	assert.Empty(t, r3.Files["unsealed.secret"])
	assert.NotEmpty(t, r3.Files["unseal.refused"])
	off := policy.Appraise(fresh(t, r3), now)
	assert.Equal(t, secureboot.Contraindicated, off.Status)
	assert.Contains(t, codes(off), secureboot.CodeSBDisabled)
}

// withSignedPCR11 puts the key and its signature over the image's own PCR 11 into
// the image, as a vendor who uses systemd-cryptenroll would: they reach user
// space in the initrd, and so change PCR 9.
func withSignedPCR11(t *testing.T, image func(testvm.Image) []byte, im testvm.Image, key crypto.Signer) testvm.Image {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	require.NoError(t, err)
	im.PCRKey = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})
	uki := image(im)
	u, err := predict.MeasureUKI(bytes.NewReader(uki), int64(len(uki)), crypto.SHA256)
	require.NoError(t, err)
	values, err := predict.Values(crypto.SHA256, []secureboot.Component{{Name: "system", Variants: []secureboot.Variant{u.Variant("", predict.Boot{})}}})
	require.NoError(t, err)
	im.PCRSig, err = bootpolicy.SignPCRs(key, crypto.SHA256, map[int][]byte{11: values[0][11]})
	require.NoError(t, err)
	return im
}

func enrolled(t *testing.T, vm *testvm.VM) predict.Keys {
	t.Helper()
	list := func(name string) []byte {
		l, err := predict.SignatureList(testvm.Owner, vm.Certificate(name))
		require.NoError(t, err)
		return l
	}
	return predict.Keys{PK: list("PK"), KEK: list("KEK"), DB: list("db")}
}
