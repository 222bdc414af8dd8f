package spdm_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
	"github.com/trusttree/trusttree/moduleid/spdm"
)

func responder(t testing.TB, curve elliptic.Curve, versions ...spdm.Version) *spdm.Responder {
	t.Helper()
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	require.NoError(t, err)
	cert, err := ca.Issue("radio", key.Public(), nil)
	require.NoError(t, err)
	r, err := spdm.NewResponder(spdm.ResponderConfig{Key: key, Chain: []*x509.Certificate{cert, ca.Certificate}, Versions: versions, MaxPortion: 200,
		Measurements: []moduleid.Measurement{{Index: 1, Kind: "firmware", Value: []byte("v1")}}})
	require.NoError(t, err)
	return r
}

func TestProofInEveryVersionAndCurve(t *testing.T) {
	for _, v := range []spdm.Version{spdm.Version10, spdm.Version11, spdm.Version12, spdm.Version13, spdm.Version14} {
		for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
			t.Run(v.String()+" "+curve.Params().Name, func(t *testing.T) {
				scheme := spdm.Scheme{MinVersion: spdm.Version10, Measurements: true}
				chip, err := spdm.NewRequester(spdm.Loopback(responder(t, curve, v)), spdm.Config{Scheme: scheme})
				require.NoError(t, err)
				c := moduleid.NewChallenge("node", "bay")
				e, err := chip.Prove(t.Context(), c)
				require.NoError(t, err)
				proof, err := scheme.Check(c, e)
				require.NoError(t, err)
				assert.Equal(t, []moduleid.Measurement{{Index: 1, Kind: "firmware", Value: []byte("v1")}}, proof.Measurements)
				_, err = scheme.Check(moduleid.NewChallenge("node", "bay"), e)
				require.ErrorContains(t, err, "another challenge")
				if v < spdm.Version12 {
					_, err = spdm.Scheme{}.Check(c, e)
					require.ErrorContains(t, err, "at least 1.2")
				}
			})
		}
	}
}
