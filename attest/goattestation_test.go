package attest_test

import (
	"bytes"
	"context"
	"crypto"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	attestation "github.com/google/go-attestation/attest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/internal/tpm"
)

// go-attestation's attester answers our verifier's challenge: its quote is
// evidence like that of our node.
func TestGoAttestationEvidenceIsAppraised(t *testing.T) {
	n, key, c, dev := enrolled(t)
	theirs, err := attestation.OpenTPM(&attestation.OpenConfig{CommandChannel: tpm.NewChannel(dev.Device, nil)})
	require.NoError(t, err)
	for _, algorithm := range []attestation.Algorithm{attestation.ECDSA, attestation.RSA} {
		ak, err := theirs.NewAK(&attestation.AKConfig{Algorithm: algorithm})
		require.NoError(t, err)
		d, err := c.devices.Get(t.Context(), n.Device())
		require.NoError(t, err)
		d.AKPublic = ak.AttestationParameters().Public
		d.ResetCount, d.RestartCount, d.Clock = 0, 0, 0 // as bound for the first time
		_, err = c.devices.Put(t.Context(), d)
		require.NoError(t, err)
		s := session(t, n, key)
		ch, err := c.verifier.Challenge(t.Context(), s)
		require.NoError(t, err)
		_, qualifying := attest.Binding(s, ch.Nonce, s.Binding[:], nil)
		q, err := ak.QuotePCRs(theirs, qualifying, attestation.HashSHA256, ch.PCRs[0].PCRs)
		require.NoError(t, err)
		read, err := tpm.ReadPCRs(dev, crypto.SHA256, ch.PCRs[0].PCRs...)
		require.NoError(t, err)
		e := &attest.Evidence{Version: 1, Challenge: ch.ID, Quote: q.Quote, Signature: q.Signature}
		for _, p := range ch.PCRs[0].PCRs {
			e.PCRValues = append(e.PCRValues, read[p]...)
		}
		r, err := c.verifier.Appraise(t.Context(), s, e)
		require.NoError(t, err)
		assert.False(t, r.Values().Plain(), "its key is below the storage root key")
		require.NoError(t, ak.Close(theirs))
	}
}

// go-attestation's event log parser judges the logs of its own test vectors,
// over PCR values that our verifier proved: each PCR once.
func TestGoAttestationReplaysEventLogs(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), testenv.Tool(t, "go", "golang"), "list", "-m", "-f", "{{.Dir}}", "github.com/google/go-attestation").Output()
	require.NoError(t, err)
	logs, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), "attest", "testdata", "*eventlog"))
	require.NoError(t, err)
	replayed := 0
	for _, file := range logs {
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		log, err := attestation.ParseEventLog(raw)
		if err != nil {
			continue // made to be refused
		}
		events := log.Events(attestation.HashSHA256)
		if len(events) == 0 || slices.ContainsFunc(events, func(e attestation.Event) bool { return len(e.Digest) != 32 }) {
			continue // of SHA-1 alone
		}
		dev, endorsers := newTPM(t)
		for _, e := range events {
			require.NoError(t, tpm.ExtendPCR(dev, e.Index, map[crypto.Hash][]byte{crypto.SHA256: e.Digest}))
		}
		n := open(t, dev, attest.NodeConfig{Endorsers: endorsers, Collectors: []attest.Collector{attest.FileCollector("application/x-eventlog", file, 1<<20)}})
		replay := func(in attest.Input) error {
			log, err := attestation.ParseEventLog(in.Bodies["application/x-eventlog"])
			if err != nil {
				return err
			}
			var pcrs []attestation.PCR
			for i := range 24 {
				if v, ok := in.PCRs[i]; ok {
					pcrs = append(pcrs, attestation.PCR{Index: i, Digest: v, DigestAlg: in.Bank})
				}
			}
			_, err = log.Verify(pcrs)
			return err
		}
		c := newCloud(t, endorsers, func(_ *attest.RegistrarConfig, v *attest.VerifierConfig) {
			v.PCRs = []quote.Selection{{Bank: crypto.SHA256, PCRs: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14}}}
			v.Appraisers = []attest.Appraiser{func(_ context.Context, in attest.Input) attest.Opinion {
				if err := replay(in); err != nil {
					return attest.Opinion{Status: attest.StatusContraindicated, Reasons: []attest.Reason{{Code: "log", Detail: err.Error()}}}
				}
				return attest.Opinion{Status: attest.StatusAffirming}
			}}
		})
		key, _ := c.enroll(n)
		_, err = c.attest(n, session(t, n, key))
		require.NoError(t, err, filepath.Base(file))
		require.NoError(t, tpm.ExtendPCR(dev, 4, map[crypto.Hash][]byte{crypto.SHA256: bytes.Repeat([]byte{1}, 32)}))
		_, err = c.attest(n, session(t, n, key))
		require.ErrorIs(t, err, attest.ErrNotAffirming, "something that the log does not have")
		replayed++
	}
	assert.GreaterOrEqual(t, replayed, 2)
}
