package fscrypt_test

import (
	"bytes"
	"errors"
	"io"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt"
)

func TestAppendAddsSegments(t *testing.T) {
	dir, v := passVolume(t)
	var want []byte
	for i := range 5 {
		w, err := v.Append("recording")
		require.NoError(t, err)
		b := bytes.Repeat([]byte{byte('0' + i)}, 100_000*i)
		_, err = w.Write(b)
		require.NoError(t, err)
		_, err = v.Append("recording")
		require.Error(t, err, "one at a time")
		got, err := v.ReadFile("recording")
		require.NoError(t, err)
		require.Equal(t, len(want), len(got), "not visible before Close")
		require.NoError(t, w.Close())
		want = append(want, b...)
	}
	w, err := v.Append("recording")
	require.NoError(t, err)
	_, err = w.Write([]byte("aborted"))
	require.NoError(t, err)
	require.NoError(t, w.Abort())
	w, err = v.Append("other")
	require.NoError(t, err)
	require.NoError(t, w.Abort())
	check := func() {
		got, err := v.ReadFile("recording")
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got))
		f, err := v.OpenFile("recording")
		require.NoError(t, err)
		_, err = f.Seek(50_000, io.SeekStart)
		require.NoError(t, err)
		var buf bytes.Buffer
		n, err := f.WriteTo(&buf)
		require.NoError(t, err)
		require.EqualValues(t, len(want)-50_000, n)
		require.True(t, bytes.Equal(want[50_000:], buf.Bytes()))
		p := make([]byte, 250_000)
		_, err = f.ReadAt(p, 90_000)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want[90_000:340_000], p))
		require.NoError(t, f.Close())
		_, err = v.ReadFile("other")
		require.Error(t, err)
	}
	check()
	require.NoError(t, v.Rotate(t.Context(), pass))
	check()
	lock(t, v)
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
	require.NoError(t, err)
	check()
	lock(t, v)
}

// TestCutRecordingKeepsItsPrefix cuts the power at every step of an append.
func TestCutRecordingKeepsItsPrefix(t *testing.T) {
	block := bytes.Repeat([]byte("0123456789abcdef"), 4096) // one chunk
	most := 0
	for cut := 1; ; cut++ {
		d := newCrashFS()
		v, err := fscrypt.CreateOn(t.Context(), d, loose, pass)
		require.NoError(t, err)
		w, err := v.Append("r")
		require.NoError(t, err)
		_, err = w.Write([]byte("closed segment"))
		require.NoError(t, err)
		require.NoError(t, w.Close())
		d.cut = d.steps + cut
		synced := 0
		err = func() error {
			w, err := v.Append("r")
			if err != nil {
				return err
			}
			for i := range 4 {
				if _, err := w.Write(block); err != nil {
					return err
				}
				if _, err := w.Write(block[:1]); err != nil {
					return err
				}
				if err := w.Sync(); err != nil {
					return err
				}
				synced = (i + 1) * len(block)
			}
			return w.Close()
		}()
		for i, fate := range fates(uint64(cut)) {
			again, oerr := fscrypt.OpenOn(t.Context(), d.Reboot(fate), fscrypt.Config{}, pass)
			require.NoError(t, oerr, "cut %d fate %d", cut, i)
			got, rerr := again.ReadFile("r")
			require.NoError(t, rerr)
			require.True(t, bytes.HasPrefix(got, []byte("closed segment")), "cut %d fate %d", cut, i)
			tail := got[len("closed segment"):]
			require.GreaterOrEqual(t, len(tail), synced, "cut %d fate %d: synced chunks are lost", cut, i)
			whole := bytes.Repeat(append(bytes.Clone(block), '0'), 4)
			require.True(t, bytes.HasPrefix(whole, tail), "cut %d fate %d", cut, i)
			most = max(most, len(tail))
		}
		if err == nil {
			break
		}
		require.True(t, errors.Is(err, errCut), err)
	}
	assert.Greater(t, most, 3*len(block))
}

// TestManySmallSegments: a record with all of them in it would be too large.
func TestManySmallSegments(t *testing.T) {
	d := newCrashFS()
	v, err := fscrypt.CreateOn(t.Context(), d, loose, pass)
	require.NoError(t, err)
	var want []byte
	segment := bytes.Repeat([]byte("s"), 5000)
	for range 300 {
		w, err := v.Append("r")
		require.NoError(t, err)
		_, err = w.Write(segment)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		want = append(want, segment...)
	}
	require.NoError(t, v.Rotate(t.Context(), pass))
	lock(t, v)
	v, err = fscrypt.OpenOn(t.Context(), d, fscrypt.Config{}, pass)
	require.NoError(t, err)
	got, err := v.ReadFile("r")
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	lock(t, v)
}

// TestFullDiskKeepsTheRecording: what was synced of a segment stays when the
// disk fills up, and the recording goes on once there is space.
func TestFullDiskKeepsTheRecording(t *testing.T) {
	block := bytes.Repeat([]byte("0123456789abcdef"), 4096) // one chunk
	for _, reopen := range []bool{false, true} {
		d := newCrashFS()
		v, err := fscrypt.CreateOn(t.Context(), d, loose, pass)
		require.NoError(t, err)
		w, err := v.Append("r")
		require.NoError(t, err)
		for range 3 {
			_, err = w.Write(block)
			require.NoError(t, err)
		}
		require.NoError(t, w.Sync())
		d.room = d.used()
		for err == nil {
			_, err = w.Write(block)
		}
		require.ErrorIs(t, err, syscall.ENOSPC)
		require.ErrorIs(t, w.Close(), syscall.ENOSPC)
		if reopen {
			d = d.Reboot(func() bool { return true })
			d.room = d.used()
			v, err = fscrypt.OpenOn(t.Context(), d, fscrypt.Config{}, pass)
			require.NoError(t, err)
		}
		_, err = v.Append("r")
		require.ErrorIs(t, err, syscall.ENOSPC)
		d.room = 0
		w, err = v.Append("r")
		require.NoError(t, err)
		_, err = w.Write([]byte("goes on"))
		require.NoError(t, err)
		require.NoError(t, w.Close())
		got, err := v.ReadFile("r")
		require.NoError(t, err)
		require.GreaterOrEqual(t, len(got), 2*len(block)+7) // age holds the last chunk back
		require.True(t, bytes.HasPrefix(got, block))
		require.Equal(t, "goes on", string(got[len(got)-7:]))
	}
}
