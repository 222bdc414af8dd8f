package spdm_test

import (
	"crypto/elliptic"
	"encoding/json"
	"flag"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/spdm"
)

var update = flag.Bool("update", false, "write golden files")

func TestGoldenEvidenceVersion1(t *testing.T) {
	const file = "testdata/evidence-v1.json"
	type golden struct {
		Nonce    []byte             `json:"nonce"`
		Evidence *moduleid.Evidence `json:"evidence"`
	}
	if *update {
		c := moduleid.NewChallenge("node-7", "bay2")
		chip, err := spdm.NewRequester(spdm.Loopback(responder(t, elliptic.P256())), spdm.Config{Scheme: spdm.Scheme{Measurements: true}})
		require.NoError(t, err)
		e, err := chip.Prove(t.Context(), c)
		require.NoError(t, err)
		data, err := json.MarshalIndent(golden{c.Nonce[:], e}, "", "  ")
		require.NoError(t, err)
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(file, append(data, '\n'), 0o644))
	}
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	var g golden
	require.NoError(t, json.Unmarshal(data, &g))
	proof, err := spdm.Scheme{Measurements: true}.Check(moduleid.Challenge{Nonce: [32]byte(g.Nonce), Node: "node-7", Connector: "bay2"}, g.Evidence)
	require.NoError(t, err)
	require.Len(t, proof.Measurements, 1)
}
