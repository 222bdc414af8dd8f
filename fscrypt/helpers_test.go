package fscrypt_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/hex"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/fscrypt/release"
	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

func parseSignature(der []byte) (r, s []byte) {
	var sig struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &sig); err != nil {
		panic(err)
	}
	return sig.R.FillBytes(make([]byte, 32)), sig.S.FillBytes(make([]byte, 32))
}

// device is a TPM that can be rebooted.
type device interface {
	transport.TPM
	Reboot(context.Context) error
}

// newTPM is the TPM in process, which is quick, or swtpm for full figures.
func newTPM(t testing.TB) *tpmtest.TPM {
	if testenv.Long() {
		dev, _ := tpmtest.New(t)
		return dev
	}
	dev, _ := tpmtest.NewSoft(t)
	return dev
}

// bothTPMs runs a test on either kind of TPM.
func bothTPMs(t *testing.T, f func(t *testing.T, dev *tpmtest.TPM)) {
	tpmtest.Each(t, func(t *testing.T, dev *tpmtest.TPM, _ *tpmtest.Maker) { f(t, dev) })
}

// boot extends what a boot of an image measures into PCR 7 and 11.
func boot(t testing.TB, dev transport.TPM, image string) {
	for _, pcr := range []int{7, 11} {
		d := sha256.Sum256([]byte(image))
		require.NoError(t, tpm.ExtendPCR(dev, pcr, map[crypto.Hash][]byte{crypto.SHA256: d[:]}))
	}
}

func reboot(t testing.TB, dev device, image string) {
	require.NoError(t, dev.Reboot(t.Context()))
	boot(t, dev, image)
}

// imagePCRs are the PCR values after boot.
func imagePCRs(image string) *literal {
	d := sha256.Sum256([]byte(image))
	v := sha256.Sum256(append(make([]byte, 32), d[:]...))
	return &literal{map[int][]byte{7: v[:], 11: v[:]}}
}

// cloud is a releasing service for one device, called directly.
type cloud struct {
	*release.Service
	lease time.Duration
	deny  error
	down  error
}

func newCloud(t testing.TB) *cloud {
	store, err := release.NewDirStore(filepath.Join(t.TempDir(), "shares"))
	require.NoError(t, err)
	c := &cloud{lease: time.Hour}
	c.Service = &release.Service{Store: store, Authorize: func(context.Context, string, string) (time.Duration, error) { return c.lease, c.deny }}
	return c
}

func (c *cloud) remote(device string) *fscrypt.Remote {
	return &fscrypt.Remote{Service: "cloud.example", Exchange: func(ctx context.Context, req []byte) ([]byte, error) {
		if c.down != nil {
			return nil, c.down
		}
		return c.Handle(ctx, device, req)
	}}
}

func recovery(t testing.TB) *fscrypt.Recovery {
	id, err := age.GenerateHybridIdentity()
	require.NoError(t, err)
	return &fscrypt.Recovery{Recipients: []age.Recipient{id.Recipient()}, Identities: []age.Identity{id}}
}

func lock(t testing.TB, v *fscrypt.Volume) {
	t.Helper()
	require.NoError(t, v.Lock(context.Background()))
}

// copyTree copies a directory, as who clones a disk does.
func copyTree(t testing.TB, from, to string) {
	t.Helper()
	require.NoError(t, os.RemoveAll(to))
	require.NoError(t, os.CopyFS(to, os.DirFS(from)))
}

// objects lists the files of a volume's object store.
func objects(t testing.TB, dir string) []string {
	m, err := filepath.Glob(filepath.Join(dir, ".fscrypt", "objects", "*"))
	require.NoError(t, err)
	return m
}

// grep reports whether any file below dir contains needle.
func grep(t testing.TB, dir string, needle []byte) bool {
	found := false
	require.NoError(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		found = found || bytes.Contains(b, needle)
		return err
	}))
	return found
}

func hexOf(b []byte) string { return hex.EncodeToString(b) }

func readDir(v *fscrypt.Volume, dir string) ([]fs.DirEntry, error) { return fs.ReadDir(v.FS(), dir) }

type ctx = context.Context

func sha256Sum(b []byte) [32]byte { return sha256.Sum256(b) }
