package tlsconn_test

import (
	"crypto/x509"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/trusttree/trusttree/tlsconn"
)

// disk is a CRL store that survives a TrustStore.
type disk struct {
	files map[string][]byte
	fail  error
}

func (d *disk) LoadCRLs() (out [][]byte, err error) {
	for _, f := range d.files {
		out = append(out, f)
	}
	return out, d.fail
}

func (d *disk) SaveCRL(issuer string, der []byte) error {
	if d.fail != nil {
		return d.fail
	}
	d.files[issuer] = der
	return nil
}

func TestCRLRolledBackOverARestart(t *testing.T) {
	ca := newCA(t, "city CA")
	next := time.Now().Add(time.Hour)
	d := &disk{files: map[string][]byte{}}
	with := func(o *tlsconn.TrustOptions) { o.CRLs = d }
	require.NoError(t, ca.trust(with).AddCRL(ca.crl(5, next, big.NewInt(2))))
	require.Len(t, d.files, 1)

	again := ca.trust(with)
	assert.ErrorContains(t, again.AddCRL(ca.crl(4, next)), "older than 5", "a restart forgets nothing")
	leaf := ca.issue(nodeName, ca.key.Public()) // serial 2
	_, err := again.Verify([]*x509.Certificate{leaf}, x509.ExtKeyUsageClientAuth)
	assert.ErrorIs(t, err, tlsconn.ErrRevoked, "and the saved list is in force")

	d.fail = errors.New("disk full")
	again.AddCRL(ca.crl(6, next, big.NewInt(2), big.NewInt(3)))
	err = again.AddCRL(ca.crl(7, next, big.NewInt(3)))
	assert.ErrorContains(t, err, "in force but could not be saved")
	_, err = tlsconn.NewTrustStore(tlsconn.TrustOptions{Roots: []*x509.Certificate{ca.cert}, CRLs: d})
	assert.ErrorContains(t, err, "disk full", "what cannot be read is not taken as empty")
	d.fail = nil
	for k := range d.files {
		d.files[k] = []byte("torn")
	}
	_, err = tlsconn.NewTrustStore(tlsconn.TrustOptions{Roots: []*x509.Certificate{ca.cert}, CRLs: d})
	assert.ErrorContains(t, err, "saved CRL")
}

// TestModelOfTrust runs random sequences of CRLs, local revocations, root changes
// and restarts, and holds every verdict to a model.
func TestModelOfTrust(t *testing.T) {
	fewer(t, 20, 100)
	ca, other := newCA(t, "city CA"), newCA(t, "other CA")
	type leafT struct {
		cert *x509.Certificate
		id   tlsconn.ID
	}
	var leaves []leafT
	for _, n := range []string{"spiffe://city.example/node/1", "spiffe://city.example/node/2", "spiffe://city.example/node/3"} {
		leaves = append(leaves, leafT{ca.issue(n, ca.key.Public()), id(t, n)})
	}
	next := time.Now().Add(time.Hour)
	rapid.Check(t, func(t *rapid.T) {
		d := &disk{files: map[string][]byte{}}
		open := func(roots ...*x509.Certificate) *tlsconn.TrustStore {
			s, err := tlsconn.NewTrustStore(tlsconn.TrustOptions{Roots: roots, CRLs: d})
			require.NoError(t, err)
			return s
		}
		s := open(ca.cert)
		number, listed, named, rooted := int64(0), map[int]bool{}, map[int]bool{}, true
		t.Repeat(map[string]func(*rapid.T){
			"crl": func(t *rapid.T) {
				n := rapid.Int64Range(1, 12).Draw(t, "number")
				set := map[int]bool{}
				var serials []*big.Int
				for i, l := range leaves {
					if rapid.Bool().Draw(t, "listed") {
						set[i] = true
						serials = append(serials, l.cert.SerialNumber)
					}
				}
				err := s.AddCRL(ca.crl(n, next, serials...))
				switch {
				case !rooted:
					require.ErrorIs(t, err, tlsconn.ErrUntrusted)
				case n <= number:
					require.Error(t, err, "an old number, or the same with other content")
				default:
					require.NoError(t, err)
					number, listed = n, set
				}
			},
			"revoke": func(t *rapid.T) {
				i := rapid.IntRange(0, 2).Draw(t, "node")
				require.NoError(t, s.Revoke(tlsconn.Revocation{ID: leaves[i].id}))
				named[i] = true
			},
			"unrevoke": func(t *rapid.T) {
				i := rapid.IntRange(0, 2).Draw(t, "node")
				require.NoError(t, s.Unrevoke(tlsconn.Revocation{ID: leaves[i].id}))
				delete(named, i)
			},
			"roots": func(t *rapid.T) {
				rooted = rapid.Bool().Draw(t, "trusted")
				roots := []*x509.Certificate{other.cert}
				if rooted {
					roots = append(roots, ca.cert)
				}
				require.NoError(t, s.SetRoots(roots))
			},
			"restart": func(t *rapid.T) {
				s, named, rooted = open(ca.cert), map[int]bool{}, true
			},
			"": func(t *rapid.T) {
				for i, l := range leaves {
					_, err := s.Verify([]*x509.Certificate{l.cert}, x509.ExtKeyUsageClientAuth)
					switch {
					case !rooted:
						require.ErrorIs(t, err, tlsconn.ErrUntrusted)
					case listed[i] || named[i]:
						require.ErrorIs(t, err, tlsconn.ErrRevoked)
					default:
						require.NoError(t, err)
					}
				}
			},
		})
	})
}
