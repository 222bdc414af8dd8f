package spdm

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
)

// trace reads a recorded exchange with DMTF's reference responder.
func trace(t testing.TB, name string) [][]byte {
	t.Helper()
	data, err := os.ReadFile(testenv.Corpus(t, "spdm-atecc", name))
	require.NoError(t, err)
	var f struct {
		Messages []struct{ Dir, Hex string } `json:"messages"`
	}
	require.NoError(t, json.Unmarshal(data, &f))
	var out [][]byte
	for _, m := range f.Messages {
		p, err := hex.DecodeString(m.Hex)
		require.NoError(t, err)
		out = append(out, p)
	}
	return out
}

func replay(messages [][]byte) (*transcript, error) {
	var t transcript
	for i := 0; i+1 < len(messages); i += 2 {
		if err := t.add(messages[i], messages[i+1]); err != nil {
			return nil, err
		}
	}
	return &t, nil
}

var traces = map[string]string{
	"probe-v11-p256.json": "ecp256/ca.cert.der", "probe-v12-p256.json": "ecp256/ca.cert.der", "probe-v12-slot1-chunk200.json": "ecp256/ca1.cert.der",
	"probe-v12-p384.json": "ecp384/ca.cert.der", "probe-v13-p384.json": "ecp384/ca.cert.der",
}

func TestReferenceResponderTracesVerify(t *testing.T) {
	for name, root := range traces {
		t.Run(name, func(t *testing.T) {
			got, err := replay(trace(t, name))
			require.NoError(t, err)
			assert.Len(t, got.challenges, 2)
			require.Len(t, got.measurements, 1)
			assert.NotEmpty(t, got.measurements[0].blocks)
			der, err := os.ReadFile(testenv.Corpus(t, "spdm-atecc", "certs", root))
			require.NoError(t, err)
			ca, err := x509.ParseCertificate(der)
			require.NoError(t, err)
			assert.True(t, got.certs[len(got.certs)-1].Equal(ca))
		})
	}
}
