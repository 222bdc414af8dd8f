package secureboot_test

import (
	"bufio"
	"bytes"
	"crypto"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/eventlog"
)

var (
	now      = time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	nextYear = now.AddDate(1, 0, 0)
)

func read(tb testing.TB, elem ...string) []byte {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{"testdata", "vm"}, elem...)...))
	require.NoError(tb, err)
	return b
}

// boot loads the evidence of a recorded boot.
func boot(tb testing.TB, name string, bank crypto.Hash) secureboot.Evidence {
	tb.Helper()
	return secureboot.Evidence{Bank: bank, PCRs: pcrsOf(tb, read(tb, name, "pcrs.txt"), bank), EventLog: read(tb, name, "binary_bios_measurements"),
		IMALog: read(tb, name, "ima_binary_runtime_measurements")}
}

// pcrsOf reads lines of bank, index and hex value.
func pcrsOf(tb testing.TB, text []byte, bank crypto.Hash) map[int][]byte {
	tb.Helper()
	pcrs := make(map[int][]byte)
	s := bufio.NewScanner(bytes.NewReader(text))
	for s.Scan() {
		f := strings.Fields(s.Text())
		if f[0] == eventlog.HashName(bank) {
			pcr, err := strconv.Atoi(f[1])
			require.NoError(tb, err)
			pcrs[pcr], err = hex.DecodeString(f[2])
			require.NoError(tb, err)
		}
	}
	require.NotEmpty(tb, pcrs)
	return pcrs
}

func learn(tb testing.TB, bank crypto.Hash, opts secureboot.LearnOptions, names ...string) *secureboot.Policy {
	tb.Helper()
	opts.Name, opts.Serial, opts.NotAfter = "node", 7, nextYear
	var evs []secureboot.Evidence
	for _, n := range names {
		evs = append(evs, boot(tb, n, bank))
	}
	p, err := secureboot.Learn(opts, evs...)
	require.NoError(tb, err)
	return p
}

func codes(r *secureboot.Result) (cs []secureboot.Code) {
	for _, f := range r.Findings {
		if f.Severity > secureboot.Affirming && !slices.Contains(cs, f.Code) {
			cs = append(cs, f.Code)
		}
	}
	return cs
}

// TestRecordedBootsGetTheirVerdict judges every recorded boot by the policy
// that was learned from its family's reference boot.
func TestRecordedBootsGetTheirVerdict(t *testing.T) {
	for _, bank := range []crypto.Hash{crypto.SHA256, crypto.SHA384} {
		opts := secureboot.LearnOptions{SHA1PaddedBank: bank == crypto.SHA384}
		uki, shim := learn(t, bank, opts, "uki-sb-on"), learn(t, bank, opts, "shim-sb-on")
		opts.MaxFailedBoots = 1
		tolerant := learn(t, bank, opts, "uki-sb-on")
		opts.PinPCR7 = true
		pinned := learn(t, bank, opts, "uki-sb-on")
		for _, c := range []struct {
			name   string
			policy *secureboot.Policy
			want   secureboot.Status
			codes  []secureboot.Code
			pcrs   []int // contraindicated ones
		}{
			{"uki-sb-on", uki, secureboot.Affirming, nil, nil},
			{"uki-sb-on", pinned, secureboot.Affirming, nil, nil},
			{"shim-sb-on", shim, secureboot.Affirming, nil, nil},
			{"uki-sb-on-dbx", uki, secureboot.Affirming, nil, nil},
			{"uki-sb-on-dbx", pinned, secureboot.Contraindicated, []secureboot.Code{secureboot.CodePCRReference}, []int{7}},
			{"uki-first-refused", uki, secureboot.Contraindicated, []secureboot.Code{secureboot.CodeBootAttempts, secureboot.CodePCRReference}, []int{4}},
			{"uki-first-refused", tolerant, secureboot.Affirming, nil, nil},
			{"uki-sb-off", uki, secureboot.Contraindicated, []secureboot.Code{secureboot.CodeSBDisabled, secureboot.CodeSBNothingAuthenticated}, []int{4, 7}},
			{"uki-sb-setup", uki, secureboot.Contraindicated, []secureboot.Code{secureboot.CodeSBSetupMode, secureboot.CodeSBDisabled}, []int{4, 7}},
			{"direct-sb-on-unsigned", uki, secureboot.Contraindicated, []secureboot.Code{secureboot.CodeSBNothingAuthenticated, secureboot.CodeSBNothingMeasured}, []int{4, 7}},
			{"shim-mok-kernel", shim, secureboot.Contraindicated, []secureboot.Code{secureboot.CodeSBAuthorityNotAllowed}, []int{7, 9, 14}},
			{"uki-ima-violation", uki, secureboot.Contraindicated, []secureboot.Code{secureboot.CodeIMAViolation}, []int{4, 9, 10, 11}},
			{"shim-sb-on", uki, secureboot.Contraindicated, []secureboot.Code{secureboot.CodeSBKeyNotAllowed}, []int{0, 4, 7}},
		} {
			if bank == crypto.SHA384 && c.name == "uki-ima-violation" {
				continue // that TPM had the SHA-256 bank only
			}
			t.Run(c.name+" "+bank.String(), func(t *testing.T) {
				r := c.policy.Appraise(boot(t, c.name, bank), now)
				assert.Equal(t, c.want, r.Status, "%v", r.Findings)
				assert.Equal(t, c.want == secureboot.Affirming, r.Err() == nil)
				assert.Subset(t, codes(r), c.codes)
				for _, pcr := range c.pcrs {
					assert.Equal(t, secureboot.Contraindicated, r.PCRs[pcr].Status, "PCR %d", pcr)
				}
				if c.want == secureboot.Affirming {
					assert.Empty(t, codes(r))
					assert.True(t, r.Enforcing)
				}
			})
		}
	}
}

func TestInspectSaysWarningAtBest(t *testing.T) {
	r := secureboot.Inspect(boot(t, "uki-sb-on", crypto.SHA256))
	assert.Equal(t, secureboot.Warning, r.Status, "%v", r.Findings)
	assert.True(t, r.Enforcing)
	assert.Equal(t, secureboot.Yes, r.SecureBoot.Enabled)
	assert.Equal(t, secureboot.ModeUser, r.SecureBoot.Mode)
	require.Error(t, r.Err())

	ev := boot(t, "uki-sb-on", crypto.SHA256)
	ev.IMALog = nil
	r = secureboot.Inspect(ev)
	assert.Equal(t, secureboot.Warning, r.Status, "%v", r.Findings)
	assert.Contains(t, codes(r), secureboot.CodePCRUnexplained)

	r = secureboot.Inspect(boot(t, "uki-sb-off", crypto.SHA256))
	assert.Equal(t, secureboot.Contraindicated, r.Status)
}

func TestUnquotedEvidenceIsNeverAffirmed(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	ev := boot(t, "uki-sb-on", crypto.SHA256)
	ev.Unquoted = true
	assert.Equal(t, secureboot.Warning, p.Appraise(ev, now).Status)
}
