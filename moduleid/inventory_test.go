package moduleid_test

import (
	"crypto"
	"crypto/rand"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
)

func TestInventoryFromChipToCloud(t *testing.T) {
	p := newPole(t, "bay1", "bay2")
	inv := p.inventory(t)
	snap, err := inv.AdmitAll(t.Context())
	require.NoError(t, err)
	require.Len(t, snap, 2)
	for i, c := range []string{"bay1", "bay2"} {
		assert.Equal(t, moduleid.Entry{Connector: c, ID: moduleid.ID(p.certs[c]), Class: "camera"}, snap[i])
	}

	nonce := make([]byte, 32)
	rand.Read(nonce)
	mediaType, body, err := inv.Collect(t.Context(), nonce)
	require.NoError(t, err)
	assert.Equal(t, moduleid.MediaType, mediaType)
	for _, bank := range []crypto.Hash{crypto.SHA256, crypto.SHA384} {
		value, err := p.pcrs.ReadPCR(t.Context(), 13, bank)
		require.NoError(t, err)
		verdict, err := p.v.VerifyReport(moduleid.ReportInput{Body: body, Node: node, Nonce: nonce, Bank: bank, PCRs: map[int][]byte{13: value}})
		require.NoError(t, err)
		assert.Len(t, verdict.Admitted(), 2)
		assert.Empty(t, verdict.Refused())
		assert.Equal(t, value, verdict.PCR(bank))
	}
}

func TestForeignModuleIsRefusedAtNodeAndCloud(t *testing.T) {
	p := newPole(t, "bay1", "bay2")
	stranger, err := moduleidtest.NewCA("Other Vendor")
	require.NoError(t, err)
	p.bus.Plug(0x61, newChip(t, stranger, "bay2").emulator)
	inv := p.inventory(t)
	snap, err := inv.AdmitAll(t.Context())
	assert.Equal(t, moduleid.ReasonUntrusted, reasonOf(t, err))
	assert.True(t, snap[0].Admitted())
	assert.True(t, snap[1].Refused())

	nonce := make([]byte, 32)
	rand.Read(nonce)
	_, body, err := inv.Collect(t.Context(), nonce)
	require.NoError(t, err)
	in := moduleid.ReportInput{Body: body, Node: node, Nonce: nonce, Bank: crypto.SHA256, PCRs: map[int][]byte{13: p.pcrs.values[crypto.SHA256][13]}}
	verdict, err := p.v.VerifyReport(in)
	require.NoError(t, err, "the node refused it, and says so")
	require.Len(t, verdict.Refused(), 1)
	assert.Equal(t, moduleid.ReasonUntrusted, verdict.Refused()[0].Reason())

	p.v.Connectors["bay2"] = moduleid.Connector{Classes: []string{"camera"}, Required: true}
	_, err = p.v.VerifyReport(in)
	assert.Equal(t, moduleid.ReasonMissing, reasonOf(t, err))
}
