package dice_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/dice"
)

var now = time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)

type fwid struct {
	Alg    asn1.ObjectIdentifier
	Digest []byte
}

type info struct {
	Vendor  string         `asn1:"optional,utf8,tag:0"`
	Version string         `asn1:"optional,utf8,tag:2"`
	SVN     int            `asn1:"optional,tag:3"`
	FWIDs   []fwid         `asn1:"optional,tag:6"`
	Flags   asn1.BitString `asn1:"optional,tag:7"`
}

var sha256OID = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}

// code is the TCB info of a layer that runs these images.
func code(images ...string) *info {
	i := &info{Vendor: "ACME", Version: "1", SVN: 1}
	for _, s := range images {
		d := sha256.Sum256([]byte(s))
		i.FWIDs = append(i.FWIDs, fwid{sha256OID, d[:]})
	}
	return i
}

// board makes root and chain.
func board(t *testing.T, layers ...*info) (root *x509.Certificate, chain [][]byte) {
	t.Helper()
	newKey := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		return k
	}
	tmpl := func(n int) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(int64(n + 1)), Subject: pkix.Name{CommonName: fmt.Sprint("layer ", n)}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	}
	key := newKey()
	der, err := x509.CreateCertificate(rand.Reader, tmpl(-1), tmpl(-1), key.Public(), key)
	require.NoError(t, err)
	root, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	parent := root
	for i, l := range layers {
		c, next := tmpl(i), newKey()
		if l != nil {
			v, err := asn1.Marshal(*l)
			require.NoError(t, err)
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1}, Critical: true, Value: v}}
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, next.Public(), key)
		require.NoError(t, err)
		chain = append(chain, der)
		parent, err = x509.ParseCertificate(der)
		require.NoError(t, err)
		key = next
	}
	return root, chain
}

func evidence(t *testing.T, layers ...*info) secureboot.Evidence {
	t.Helper()
	root, chain := board(t, layers...)
	b, err := dice.Verify(chain, []*x509.Certificate{root}, now)
	require.NoError(t, err)
	ev, err := b.Evidence(crypto.SHA256)
	require.NoError(t, err)
	return ev
}

func TestLayeredBootUnderTheSamePolicy(t *testing.T) {
	good := evidence(t, code("boot ROM"), code("loader", "loader settings"), code("kernel", "initrd"))
	p, err := secureboot.Learn(secureboot.LearnOptions{Name: "board", NotAfter: now.AddDate(1, 0, 0), InsecureNoSB: true, Replay: []int{}, Ignore: []int{}}, good)
	require.NoError(t, err)
	again := evidence(t, code("boot ROM"), code("loader", "loader settings"), code("kernel", "initrd"))
	assert.Equal(t, secureboot.Affirming, p.Appraise(again, now).Status)
	for name, ev := range map[string]secureboot.Evidence{
		"another kernel":      evidence(t, code("boot ROM"), code("loader", "loader settings"), code("evil", "initrd")),
		"layers swapped":      evidence(t, code("boot ROM"), code("kernel", "initrd"), code("loader", "loader settings")),
		"settings left out":   evidence(t, code("boot ROM"), code("loader"), code("kernel", "initrd")),
		"order of images":     evidence(t, code("boot ROM"), code("loader", "loader settings"), code("initrd", "kernel")),
		"the last layer only": evidence(t, code("kernel", "initrd")),
		"a layer more":        evidence(t, code("boot ROM"), code("loader", "loader settings"), code("kernel", "initrd"), code("evil")),
	} {
		assert.Equal(t, secureboot.Contraindicated, p.Appraise(ev, now).Status, name)
	}
}

func TestChainsThatAreRefused(t *testing.T) {
	root, chain := board(t, code("rom"), code("kernel"))
	otherRoot, otherChain := board(t, code("rom"), code("kernel"))
	roots := []*x509.Certificate{root}
	check := func(chain [][]byte, roots []*x509.Certificate, at time.Time) error {
		_, err := dice.Verify(chain, roots, at)
		return err
	}
	require.NoError(t, check(chain, roots, now))
	assert.ErrorIs(t, check(chain, nil, now), dice.ErrChain, "no root")
	assert.ErrorIs(t, check(chain, []*x509.Certificate{otherRoot}, now), dice.ErrChain, "another maker")
	assert.ErrorIs(t, check([][]byte{chain[0], otherChain[1]}, roots, now), dice.ErrChain, "another board's layer")
	assert.ErrorIs(t, check(chain[1:], roots, now), dice.ErrChain, "first layer left out")
	assert.ErrorIs(t, check(chain, roots, now.Add(2*time.Hour)), dice.ErrChain, "expired")
	assert.Error(t, check(nil, roots, now), "empty")
	assert.Error(t, check(append(chain, chain...), roots, now), "again")
	assert.Error(t, check([][]byte{{0x30}}, roots, now), "no certificate")

	debug := code("kernel")
	debug.Flags = asn1.BitString{Bytes: []byte{0x10}, BitLength: 4}
	short := code("kernel")
	short.FWIDs[0].Digest = []byte{1}
	unknown := code("kernel")
	unknown.FWIDs[0].Alg = asn1.ObjectIdentifier{1, 2, 3}
	for name, l := range map[string]*info{"debug mode": debug, "not measured": nil, "short firmware ID": short, "unknown hash": unknown, "no firmware ID": code()} {
		r, c := board(t, code("rom"), l)
		assert.Error(t, check(c, []*x509.Certificate{r}, now), name)
	}
}

func TestFirmwareIDsOfAnotherHashAreNotLeftOut(t *testing.T) {
	mixed := code("kernel")
	mixed.FWIDs = append(mixed.FWIDs, fwid{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}, make([]byte, 48)})
	root, chain := board(t, mixed)
	b, err := dice.Verify(chain, []*x509.Certificate{root}, now)
	require.NoError(t, err)
	_, err = b.Evidence(crypto.SHA256)
	require.Error(t, err)
	_, err = b.Evidence(crypto.SHA1)
	require.Error(t, err)
	assert.Len(t, b.Layers(), 1)
	assert.NotNil(t, b.Leaf())
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(t *testing.T, der []byte) {
		_, _ = dice.Verify([][]byte{der}, nil, now)
	})
}
