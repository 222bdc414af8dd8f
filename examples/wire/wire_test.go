package wire_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/examples/wire"
)

func TestDecodeIsStrict(t *testing.T) {
	type v struct {
		A int `json:"a"`
	}
	for name, in := range map[string]string{
		"unknown field": `{"a":1,"b":2}`, "trailing data": `{"a":1}x`, "second value": `{"a":1}{"a":2}`,
		"empty": ``, "truncated": `{"a":`, "too long": `{"a":1}` + string(bytes.Repeat([]byte{' '}, 100)),
	} {
		assert.Error(t, wire.Decode([]byte(in), 64, new(v)), name)
	}
	require.NoError(t, wire.Decode([]byte(`{"a":1}`), 64, new(v)))
}

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, wire.WriteFrame(&b, []byte("hello")))
	whole := bytes.Clone(b.Bytes())
	got, err := wire.ReadFrame(&b, 10)
	require.NoError(t, err)
	assert.Equal(t, "hello", string(got))
	for cut := 1; cut < len(whole); cut++ {
		_, err := wire.ReadFrame(bytes.NewReader(whole[:cut]), 10)
		require.Error(t, err, "cut after %d bytes", cut)
	}
	_, err = wire.ReadFrame(bytes.NewReader(whole), 4)
	require.ErrorContains(t, err, "at most 4")
	_, err = wire.ReadFrame(bytes.NewReader(binary.BigEndian.AppendUint32(nil, 1<<31)), 1<<31)
	require.Error(t, err)
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 'x'})
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		msg, err := wire.ReadFrame(bytes.NewReader(b), 1<<16)
		if err == nil && len(msg)+4 > len(b) {
			t.Fatal("more came out than went in")
		}
	})
}

func FuzzParseBootstrap(f *testing.F) {
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = wire.ParseBootstrap(b) })
}

func TestOneLine(t *testing.T) {
	assert.Equal(t, "a: b; c", wire.OneLine("a: b\na: b\n  c\n"))
}

func TestReportCodes(t *testing.T) {
	base := errors.New("boom")
	for want, err := range map[int]error{
		wire.ExitDone: nil, wire.ExitFailed: base, wire.ExitUsage: wire.Usage("no %s", "x"),
		wire.ExitRefused: wire.Refused(base, "ask"), wire.ExitUnavailable: wire.Unavailable(os.ErrDeadlineExceeded, ""),
	} {
		assert.Equal(t, want, wire.Report(io.Discard, "node", err))
	}
	_, err := wire.LoadBootstrap(filepath.Join(t.TempDir(), "absent"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
