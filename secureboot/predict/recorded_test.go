package predict_test

import (
	"crypto"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/eventlog"
	"github.com/trusttree/trusttree/secureboot/predict"
)

const owner = "77fa9abd-0359-4d32-bd60-28f4e78f784b"

// TestPCR7OfARealBootFromItsCertificates: from the certificates alone, in all
// banks.
func TestPCR7OfARealBootFromItsCertificates(t *testing.T) {
	const dir = "../testdata/vm/uki-sb-on/"
	raw, err := os.ReadFile(dir + "binary_bios_measurements")
	require.NoError(t, err)
	pcrs, err := os.ReadFile(dir + "pcrs.txt")
	require.NoError(t, err)
	log, err := eventlog.Parse(raw, nil)
	require.NoError(t, err)
	certs := map[string][]byte{} // of the log: stands for the owner's files
	for e := range log.Events() {
		if v, ok := eventlog.ParseVariable(e.Data); ok && e.PCR == 7 && len(v.Data) > 44 && certs[v.Name] == nil {
			certs[v.Name] = v.Data[44:]
		}
	}
	list := func(name string) []byte {
		l, err := predict.SignatureList(owner, certs[name])
		require.NoError(t, err)
		return l
	}
	k := predict.Keys{PK: list("PK"), KEK: list("KEK"), DB: list("db")}
	for _, bank := range []crypto.Hash{crypto.SHA256, crypto.SHA384} {
		v, err := k.Variant("keys", bank, owner, certs["db"])
		require.NoError(t, err)
		values, err := predict.Values(bank, []secureboot.Component{{Name: "keys", Variants: []secureboot.Variant{v}}})
		require.NoError(t, err)
		want := eventlog.HashName(bank) + " 7 " + hex.EncodeToString(values[0][7])
		assert.True(t, strings.Contains(string(pcrs), want), want)
	}
	_, err = k.Variant("keys", crypto.SHA256, owner, []byte("another certificate"))
	require.Error(t, err, "an authority that db does not hold")
	_, err = k.Variant("keys", crypto.SHA256, "no GUID")
	require.Error(t, err)
}
