package ima_test

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/secureboot/ima"
)

func recorded(tb testing.TB, boot, bank string) (log []byte, pcrs map[int][]byte) {
	tb.Helper()
	dir := "../testdata/vm/" + boot + "/"
	log, err := os.ReadFile(dir + "ima_binary_runtime_measurements")
	require.NoError(tb, err)
	text, err := os.ReadFile(dir + "pcrs.txt")
	require.NoError(tb, err)
	pcrs = make(map[int][]byte)
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		if f := strings.Fields(s.Text()); f[0] == bank {
			i, err := strconv.Atoi(f[1])
			require.NoError(tb, err)
			pcrs[i], err = hex.DecodeString(f[2])
			require.NoError(tb, err)
		}
	}
	return log, pcrs
}

var hashes = map[string]crypto.Hash{"sha1": crypto.SHA1, "sha256": crypto.SHA256, "sha384": crypto.SHA384}

func TestRecordedLogsInEveryBank(t *testing.T) {
	for _, boot := range []string{"uki-sb-on", "uki-sb-off", "shim-sb-on", "shim-mok-kernel", "direct-sb-on-unsigned", "uki-sb-setup", "uki-sb-on-dbx", "uki-first-refused"} {
		for bank, h := range hashes {
			raw, pcrs := recorded(t, boot, bank)
			l, err := ima.Parse(raw, nil)
			require.NoError(t, err)
			v, err := l.Verify(h, pcrs)
			require.NoError(t, err, "%s %s", boot, bank)
			assert.Equal(t, 5, v.State.Entries)
			assert.Equal(t, bank == "sha384", v.Padded, "%s: the kernel has no SHA-384 when IMA starts", bank)
			want := ima.AggregateUnchecked // over SHA-256
			if bank == "sha256" {
				want = ima.AggregateOK
			}
			assert.Equal(t, want, v.Aggregate, bank)
			assert.Equal(t, 1, v.Aggregates)
		}
	}
}

func TestViolation(t *testing.T) {
	raw, pcrs := recorded(t, "uki-ima-violation", "sha256")
	l, err := ima.Parse(raw, nil)
	require.NoError(t, err)
	v, err := l.Verify(crypto.SHA256, pcrs)
	require.NoError(t, err)
	assert.Equal(t, 1, v.Violations)
	n := 0
	for e := range v.Entries() {
		if e.Violation {
			n++
			assert.Equal(t, ima.Entry{Num: e.Num, Violation: true}, e, "no digest binds which file it was")
		}
	}
	assert.Equal(t, 1, n)
	for e := range l.Entries() {
		if e.Violation {
			assert.Equal(t, "/data/etc/config", string(e.Name), "for display")
		}
	}
}

func TestAnyChangedByteOrTruncationIsRefused(t *testing.T) {
	raw, pcrs := recorded(t, "uki-sb-on", "sha256")
	check := func(b []byte) (claims []string, err error) {
		l, err := ima.Parse(b, nil)
		if err != nil {
			return nil, err
		}
		v, err := l.Verify(crypto.SHA256, pcrs)
		if err != nil {
			return nil, err
		}
		for e := range v.Entries() {
			if !e.Known {
				return nil, fmt.Errorf("template %q is not known", e.Template)
			}
			claims = append(claims, fmt.Sprintf("%s %x", e, e.Signature))
		}
		return claims, nil
	}
	want, err := check(raw)
	require.NoError(t, err)
	for i := range raw {
		for _, mask := range []byte{1, 0x20, 0xFF} {
			b := bytes.Clone(raw)
			b[i] ^= mask
			if got, err := check(b); err == nil {
				require.Equal(t, want, got, "byte %d", i)
			}
		}
		_, err := check(raw[:i])
		require.Error(t, err, "truncated to %d bytes", i)
	}
}

func TestBootAggregateOfAnotherBoot(t *testing.T) {
	raw, pcrs := recorded(t, "uki-sb-on", "sha256")
	l, err := ima.Parse(raw, nil)
	require.NoError(t, err)
	pcrs[4] = make([]byte, 32)
	v, err := l.Verify(crypto.SHA256, pcrs)
	require.NoError(t, err)
	assert.Equal(t, ima.AggregateMismatch, v.Aggregate)
	delete(pcrs, 4)
	v, err = l.Verify(crypto.SHA256, pcrs)
	require.NoError(t, err)
	assert.Equal(t, ima.AggregateUnchecked, v.Aggregate)
	delete(pcrs, 10)
	_, err = l.Verify(crypto.SHA256, pcrs)
	require.ErrorIs(t, err, ima.ErrBehind)
}

// entry builds one measurement of template ima-ng (or the format given).
func entry(pcr uint32, template string, fields ...[]byte) []byte {
	var data []byte
	for _, f := range fields {
		data = append(binary.LittleEndian.AppendUint32(data, uint32(len(f))), f...)
	}
	return raw(pcr, template, data, sha1.Sum(data))
}

func raw(pcr uint32, template string, data []byte, digest [20]byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, pcr)
	b = append(b, digest[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(template)))
	b = append(b, template...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func ng(content string) []byte {
	d := sha256.Sum256([]byte(content))
	return append([]byte("sha256:\x00"), d[:]...)
}

func file(name, content string) []byte { return entry(10, "ima-ng", ng(content), []byte(name+"\x00")) }

// extend replays template data of ima-ng style entries in SHA-256.
func extend(pcr []byte, e []byte) []byte {
	n := 28 + binary.LittleEndian.Uint32(e[24:]) + 4
	d := sha256.Sum256(e[n:])
	s := sha256.Sum256(append(bytes.Clone(pcr), d[:]...))
	return s[:]
}

func TestTemplates(t *testing.T) {
	sig := []byte{3, 2, 4, 0, 0, 0, 0, 0, 0}
	for _, c := range []struct {
		template string
		fields   [][]byte
		known    bool
	}{
		{"ima-ng", [][]byte{ng("x"), []byte("/x\x00")}, true},
		{"ima-sig", [][]byte{ng("x"), []byte("/x\x00"), sig}, true},
		{"ima-ngv2", [][]byte{append([]byte("ima:"), ng("x")...), []byte("/x\x00")}, true},
		{"ima-sigv2", [][]byte{append([]byte("verity:"), ng("x")...), []byte("/x\x00"), sig}, true},
		{"ima-buf", [][]byte{ng("x"), []byte("kexec-cmdline\x00"), []byte("buffer")}, true},
		{"ima-modsig", [][]byte{ng("x"), []byte("/x\x00"), sig, ng("y"), []byte("modsig")}, true},
		{"evm-sig", [][]byte{ng("x"), []byte("/x\x00"), sig, {}, {}, {}, {0, 0}, {0, 0}, {0, 0}}, true},
		{"d-ng|n-ng|sig", [][]byte{ng("x"), []byte("/x\x00"), sig}, true},
		{"n-ng|d-ng|sig", [][]byte{[]byte("/x\x00"), ng("x"), sig}, false},
		{"d-ng|n-ng|n-ng", [][]byte{ng("x"), []byte("/x\x00"), []byte("/y\x00")}, false},
		{"d-ng|n-ng|d-ng", [][]byte{ng("x"), []byte("/x\x00"), ng("y")}, false},
		{"d-ng|n-ng|new", [][]byte{ng("x"), []byte("/x\x00"), sig}, false},
		{"vendor", [][]byte{ng("x")}, false},
		{"ima-ng", [][]byte{ng("x")}, false},
		{"ima-ng", [][]byte{ng("x"), []byte("/x\x00"), {}}, false},
		{"ima-ng", [][]byte{[]byte("no colon"), []byte("/x\x00")}, false},
	} {
		b := entry(10, c.template, c.fields...)
		l, err := ima.Parse(b, nil)
		require.NoError(t, err, c.template)
		v, err := l.Verify(crypto.SHA256, map[int][]byte{10: extend(make([]byte, 32), b)})
		require.NoError(t, err, c.template)
		for e := range v.Entries() {
			assert.Equal(t, c.known, e.Known, "%s %d fields", c.template, len(c.fields))
		}
	}
}

// TestOldTemplate: "ima" has no length, and hashes names padded.
func TestOldTemplate(t *testing.T) {
	content := sha1.Sum([]byte("x"))
	hashed := append(content[:], make([]byte, 256)...)
	copy(hashed[20:], "/bin/x")
	digest := sha1.Sum(hashed)
	b := binary.LittleEndian.AppendUint32(nil, 10)
	b = append(b, digest[:]...)
	b = append(binary.LittleEndian.AppendUint32(b, 3), "ima"...)
	b = append(b, content[:]...)
	b = append(binary.LittleEndian.AppendUint32(b, 6), "/bin/x"...)
	l, err := ima.Parse(append(b, b...), nil)
	require.NoError(t, err)
	pcr := sha1.Sum(append(make([]byte, 20), digest[:]...))
	v, err := l.Verify(crypto.SHA1, map[int][]byte{10: pcr[:]})
	require.NoError(t, err)
	assert.Equal(t, 1, v.Unverified)
	for e := range v.Entries() {
		assert.Equal(t, "/bin/x", string(e.Name))
		assert.Equal(t, content[:], e.Digest)
	}
}

func TestPaddedBankIsRecognised(t *testing.T) {
	b := file("/x", "content")
	padded := make([]byte, 48)
	copy(padded, b[4:24])
	pcr := sha512.Sum384(append(make([]byte, 48), padded...))
	l, err := ima.Parse(b, nil)
	require.NoError(t, err)
	v, err := l.Verify(crypto.SHA384, map[int][]byte{10: pcr[:]})
	require.NoError(t, err)
	assert.True(t, v.Padded)
	native := sha512.Sum384(b[28+6+4:])
	pcr = sha512.Sum384(append(make([]byte, 48), native[:]...))
	v, err = l.Verify(crypto.SHA384, map[int][]byte{10: pcr[:]})
	require.NoError(t, err)
	assert.False(t, v.Padded)
}

func TestHostileLogs(t *testing.T) {
	good := file("/x", "content")
	big := bytes.Clone(good)
	binary.LittleEndian.PutUint32(big[34:], 0xFFFFFFF0)
	name := bytes.Clone(good)
	binary.LittleEndian.PutUint32(name[24:], 0xFFFFFFFF)
	for what, b := range map[string][]byte{
		"PCR 11":                     entry(11, "ima-ng", ng("x"), []byte("/x\x00")),
		"template data of 4 GiB":     big,
		"template name of 4 GiB":     name,
		"no template name":           entry(10, "", ng("x")),
		"one byte more":              append(bytes.Clone(good), 0),
		"template name of 300 bytes": entry(10, strings.Repeat("x", 300), ng("x")),
		"entry above the limit":      entry(10, "ima-buf", ng("x"), []byte("x\x00"), make([]byte, 2<<20)),
	} {
		_, err := ima.Parse(b, nil)
		assert.Error(t, err, what)
	}
	_, err := ima.Parse(bytes.Repeat(good, 3), &ima.Options{MaxEntries: 2})
	require.Error(t, err)
	_, err = ima.Parse(entry(11, "ima-ng", ng("x"), []byte("/x\x00")), &ima.Options{PCR: 11})
	require.NoError(t, err)

	bad := raw(10, "ima-ng", good[38:], [20]byte{1})
	l, err := ima.Parse(bad, nil)
	require.NoError(t, err)
	_, err = l.Verify(crypto.SHA256, map[int][]byte{10: extend(make([]byte, 32), good)})
	require.ErrorIs(t, err, ima.ErrTemplate, "template digest is not of the template data")
}

// TestNameWithNewlineForgesNoLine: behaviour 31.
func TestNameWithNewlineForgesNoLine(t *testing.T) {
	b := file("/tmp/x\n10 0000 ima-ng sha256:00 /bin/good", "evil")
	l, err := ima.Parse(b, nil)
	require.NoError(t, err)
	n := 0
	for e := range l.Entries() {
		n++
		assert.NotContains(t, e.String(), "\n")
		assert.Contains(t, string(e.Name), "\n", "raw bytes are kept")
	}
	assert.Equal(t, 1, n)
}

func TestResumeVerifiesTheNewEntriesAlone(t *testing.T) {
	var log []byte
	var at []int
	pcr := make([]byte, 32)
	var pcrs [][]byte
	for i := range 10 {
		e := file(fmt.Sprintf("/f%d", i), strconv.Itoa(i))
		log = append(log, e...)
		pcr = extend(pcr, e)
		at, pcrs = append(at, len(log)), append(pcrs, pcr)
	}
	l, err := ima.Parse(log[:at[5]], nil)
	require.NoError(t, err)
	v, err := l.Verify(crypto.SHA256, map[int][]byte{10: pcrs[3]})
	require.NoError(t, err)
	assert.Equal(t, 4, v.State.Entries)
	assert.Equal(t, at[3], v.State.Bytes)
	assert.Equal(t, 2, v.Unverified)

	state := v.State
	state.ResetCount, state.RestartCount = 7, 1
	v, err = ima.Resume(state, log[state.Bytes:], map[int][]byte{10: pcrs[9]}, 7, 1, nil)
	require.NoError(t, err)
	assert.Equal(t, 10, v.State.Entries)
	assert.Equal(t, len(log), v.State.Bytes)
	var names []string
	for e := range v.Entries() {
		names = append(names, string(e.Name))
	}
	assert.Equal(t, []string{"/f4", "/f5", "/f6", "/f7", "/f8", "/f9"}, names)

	_, err = ima.Resume(state, log[state.Bytes:], map[int][]byte{10: pcrs[9]}, 8, 1, nil)
	require.ErrorIs(t, err, ima.ErrRebooted, "another boot with the old prefix is a replay")
	_, err = ima.Resume(state, log[state.Bytes:], map[int][]byte{10: pcrs[9]}, 7, 2, nil)
	require.ErrorIs(t, err, ima.ErrRebooted)
	_, err = ima.Resume(state, log[at[4]:], map[int][]byte{10: pcrs[9]}, 7, 1, nil)
	require.ErrorIs(t, err, ima.ErrBehind, "an entry was left out")
	_, err = ima.Resume(state, log[at[3]:], map[int][]byte{10: pcrs[2]}, 7, 1, nil)
	require.ErrorIs(t, err, ima.ErrBehind, "PCR 10 never goes back")
	v, err = ima.Resume(state, nil, map[int][]byte{10: pcrs[3]}, 7, 1, nil)
	require.NoError(t, err)
	assert.Equal(t, state, v.State)
}

func FuzzParse(f *testing.F) {
	_, pcrs := recorded(f, "uki-sb-on", "sha256")
	dirs, err := os.ReadDir("../testdata/vm")
	require.NoError(f, err)
	for _, d := range dirs {
		b, _ := recorded(f, d.Name(), "sha256")
		f.Add(b)
	}
	f.Add(file("/x", "y"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ima.Parse(b, &ima.Options{MaxEntries: 1000})
		if err != nil {
			return
		}
		for e := range l.Entries() {
			_ = e.String()
		}
		if v, err := l.Verify(crypto.SHA256, pcrs); err == nil {
			for e := range v.Entries() {
				_ = e.ID()
			}
			_, _ = ima.Resume(v.State, b, pcrs, 0, 0, nil)
		}
		_, _ = l.Verify(crypto.SHA1, map[int][]byte{10: make([]byte, 20)})
	})
}

// manyEntries is a log of n entries and its PCR.
func manyEntries(n int) (log []byte, pcr []byte) {
	pcr = make([]byte, 32)
	for i := range n {
		e := file(fmt.Sprintf("/usr/lib/x86_64-linux-gnu/file-%07d.so", i), strconv.Itoa(i))
		log = append(log, e...)
		pcr = extend(pcr, e)
	}
	return log, pcr
}

func BenchmarkVerify100000Entries(b *testing.B) {
	log, pcr := manyEntries(100_000)
	b.SetBytes(int64(len(log)))
	b.ReportAllocs()
	for b.Loop() {
		l, err := ima.Parse(log, nil)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := l.Verify(crypto.SHA256, map[int][]byte{10: pcr}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkResume100OfOne100000(b *testing.B) {
	log, pcr := manyEntries(100_000)
	l, err := ima.Parse(log, nil)
	if err != nil {
		b.Fatal(err)
	}
	v, err := l.Verify(crypto.SHA256, map[int][]byte{10: pcr})
	if err != nil {
		b.Fatal(err)
	}
	var tail []byte
	for i := range 100 {
		e := file("/new", strconv.Itoa(i))
		tail, pcr = append(tail, e...), extend(pcr, e)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ima.Resume(v.State, tail, map[int][]byte{10: pcr}, 0, 0, nil); err != nil {
			b.Fatal(err)
		}
	}
}
