package eventlog_test

import (
	"crypto"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/secureboot/eventlog"
	"github.com/trusttree/trusttree/secureboot/internal/logtest"
)

func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"../testdata/vm/*/binary_bios_measurements", "../testdata/uboot/*/binary_bios_measurements",
		filepath.Join(os.Getenv("TRUSTTREE_CORPUS"), "secureboot", "thirdparty", "*", "*")} {
		files, err := filepath.Glob(pattern)
		require.NoError(f, err)
		for _, file := range files {
			b, err := os.ReadFile(file)
			require.NoError(f, err)
			f.Add(b)
		}
	}
	f.Add(logtest.Header(crypto.SHA256))
	f.Add(make([]byte, 64))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := eventlog.Parse(b, &eventlog.Options{MaxSize: 1 << 20})
		if err != nil {
			return
		}
		for e := range l.Events() {
			_ = e.Hint()
			_ = e.Type.String()
		}
		for _, bank := range l.Banks() {
			values, err := l.Replay(bank)
			require.NoError(t, err)
			if len(values) == 0 {
				continue
			}
			v, err := l.Verify(bank, values)
			require.NoError(t, err, "a log explains its own replay")
			for pcr := range 24 {
				for e := range v.Events(pcr) {
					e.Fact()
					e.Separator()
				}
			}
		}
		require.NoError(t, l.WriteCEL(io.Discard))
	})
}

func FuzzParseCEL(f *testing.F) {
	f.Add([]byte(`[{"recnum":0,"pcr":13,"digests":[{"hashAlg":"sha1","digest":"0123456789012345678901234567890123456789"}],"content_type":"x","content":{}}]`))
	f.Add([]byte("\x1e{\"pcr\":11,\"digests\":[{\"hashAlg\":\"sha1\",\"digest\":\"0123456789012345678901234567890123456789\"}]}\n"))
	f.Add([]byte{0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 13, 3, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := eventlog.ParseCEL(b, &eventlog.Options{MaxSize: 1 << 20})
		if err != nil {
			return
		}
		for _, bank := range l.Banks() {
			_, err := l.Replay(bank)
			require.NoError(t, err)
		}
		require.NoError(t, l.WriteCEL(io.Discard))
	})
}
