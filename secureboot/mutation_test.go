package secureboot_test

import (
	"bytes"
	"crypto"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/eventlog"
)

// recordings are all recorded boots, each with the reference boot of its
// family.
var recordings = map[string]string{"uki-sb-on": "uki-sb-on", "uki-sb-on-dbx": "uki-sb-on", "uki-first-refused": "uki-sb-on", "uki-sb-off": "uki-sb-on",
	"uki-sb-setup": "uki-sb-on", "uki-ima-violation": "uki-sb-on", "direct-sb-on-unsigned": "uki-sb-on", "shim-sb-on": "shim-sb-on", "shim-mok-kernel": "shim-sb-on"}

// noMore reports what a result claims that the original does not. Device paths
// and findings' texts are hints, and no claims.
func noMore(orig, got *secureboot.Result) (more []string) {
	say := func(bad bool, what string) {
		if bad {
			more = append(more, what)
		}
	}
	say(got.Status < orig.Status, "status "+got.Status.String())
	say(got.Enforcing && !orig.Enforcing, "enforcing")
	for pcr, s := range got.PCRs {
		say(s.Status == secureboot.Affirming && s != orig.PCRs[pcr], "PCR status")
	}
	o, g := orig.SecureBoot, got.SecureBoot
	if g == nil {
		say(got.Status == secureboot.Affirming, "affirming without a verified log")
		return more
	}
	if o == nil {
		return append(more, "a Secure Boot state")
	}
	say(g.Enabled != o.Enabled && g.Enabled != secureboot.Unknown, "enabled "+g.Enabled.String())
	say(g.Mode != o.Mode && g.Mode != secureboot.ModeUnknown, "mode "+g.Mode.String())
	for _, l := range [][2][]secureboot.Signature{{o.PK, g.PK}, {o.KEK, g.KEK}, {o.DB, g.DB}, {o.DBX, g.DBX}} {
		say(len(l[1]) > 0 && !slices.EqualFunc(l[0], l[1], func(a, b secureboot.Signature) bool {
			return a.Type == b.Type && a.Owner == b.Owner && bytes.Equal(a.Data, b.Data)
		}), "signature database")
	}
	at := 0
	for _, a := range g.Authorities { // a part of the original's, in order
		for at < len(o.Authorities) && o.Authorities[at].ID() != a.ID() {
			at++
		}
		say(at == len(o.Authorities), "authority "+a.ID())
		at++
	}
	say(!slices.EqualFunc(o.Images, g.Images, func(a, b secureboot.Image) bool { return a.PreOS == b.PreOS && bytes.Equal(a.Digest, b.Digest) }), "images")
	say(g.FailedAttempts != o.FailedAttempts || g.AttemptsOmitted != o.AttemptsOmitted, "attempts")
	say(g.Shim.SBATLevel != o.Shim.SBATLevel && g.Shim.SBATLevel != "", "SBAT level")
	say(g.Shim.MOKTrusted && !o.Shim.MOKTrusted, "MOK trusted")
	if got.Status < secureboot.Contraindicated { // nothing speaks against it: then all of it is as it was
		say(got.Enforcing != orig.Enforcing || g.Enabled != o.Enabled || g.Mode != o.Mode || len(g.Authorities) != len(o.Authorities) ||
			len(g.DB) != len(o.DB) || len(g.DBX) != len(o.DBX) || len(g.PK) != len(o.PK) || len(g.KEK) != len(o.KEK), "less, without a reason")
	}
	return more
}

// mutations yields b with single bytes changed, and truncated: all of them when
// full figures are asked for, else about n.
func mutations(b []byte, n int, yield func(what string, at int, m []byte)) {
	step, masks := max(1, len(b)/n), []byte{0x01}
	if testenv.Long() {
		step, masks = 1, []byte{0x01, 0x20, 0x80, 0xFF}
	}
	m := bytes.Clone(b)
	for i := 0; i < len(b); i += step {
		if step > 1 {
			masks[0] = 1 << (i / step % 8)
		}
		for _, mask := range masks {
			m[i] ^= mask
			yield("byte changed", i, m)
			m[i] = b[i]
		}
		yield("truncated", i, b[:i:i])
	}
}

// TestEveryChangedByteOfARecordedBoot: every truncation and every single-byte
// change of the event log or IMA log of every recorded boot, in each bank, is
// refused or changes nothing that is claimed.
func TestEveryChangedByteOfARecordedBoot(t *testing.T) {
	for name, family := range recordings {
		for _, bank := range []crypto.Hash{crypto.SHA256, crypto.SHA384} {
			if name == "uki-ima-violation" && bank != crypto.SHA256 {
				continue // its TPM has the SHA-256 bank alone
			}
			t.Run(name+" "+bank.String(), func(t *testing.T) {
				opts := secureboot.LearnOptions{SHA1PaddedBank: bank == crypto.SHA384}
				rules := learn(t, bank, opts, family)
				opts.PinPCR7 = true
				pinned := learn(t, bank, opts, family)
				for _, p := range []*secureboot.Policy{rules, pinned} {
					ev := boot(t, name, bank)
					orig := p.Appraise(ev, now)
					log, imaLog, affirmed := ev.EventLog, ev.IMALog, 0
					check := func(what string, at int) {
						r := p.Appraise(ev, now)
						if more := noMore(orig, r); len(more) > 0 {
							require.Failf(t, "claims more", "%s at %d: %v; %v", what, at, more, r.Findings)
						}
						if r.Status == secureboot.Affirming {
							affirmed++
							require.NotEqual(t, "truncated", what, "at %d", at)
						}
					}
					mutations(log, 150, func(what string, at int, m []byte) {
						ev.EventLog = m
						check(what, at)
					})
					ev.EventLog = log
					mutations(imaLog, 60, func(what string, at int, m []byte) {
						ev.IMALog = m
						check("IMA log "+what, at)
					})
					t.Logf("%d bytes, %d of IMA: %d changes were of what no digest binds and nothing claims", len(log), len(imaLog), affirmed)
				}
			})
		}
	}
}

// TestEveryChangedByteOfOtherFirmwaresLogs does the same to logs of real
// machines whose quotes are not known: their own replay stands for the quote.
func TestEveryChangedByteOfOtherFirmwaresLogs(t *testing.T) {
	dir := testenv.Corpus(t, "secureboot", "thirdparty")
	files, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		l, err := eventlog.Parse(raw, nil)
		if err != nil {
			continue // refused as it is
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			bank := l.Banks()[len(l.Banks())-1]
			values, err := l.Replay(bank)
			require.NoError(t, err)
			ev := secureboot.Evidence{Bank: bank, PCRs: values, EventLog: raw}
			orig := secureboot.Inspect(ev)
			mutations(raw, 100, func(what string, at int, m []byte) {
				ev.EventLog = m
				r := secureboot.Inspect(ev)
				more := noMore(orig, r)
				if what == "truncated" && r.Status != secureboot.Contraindicated {
					short, err := eventlog.Parse(m, nil)
					require.NoError(t, err)
					if extends(short) != extends(l) { // what is cut off is more than events that are never extended
						more = append(more, "a truncated log")
					}
				}
				if len(more) > 0 {
					require.Failf(t, "claims more", "%s at %d: %v; %v", what, at, more, r.Findings)
				}
			})
			assert.NotEqual(t, secureboot.Affirming, orig.Status)
		})
	}
}

func extends(l *eventlog.Log) (n int) {
	for range l.Extends() {
		n++
	}
	return n
}
