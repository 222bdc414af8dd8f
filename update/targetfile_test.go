package update_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/update"
)

// cutSource ends a target's transfer after some bytes, in a way of its own.
type cutSource struct {
	update.Source
	after int64
	end   func() error
	bytes int64 // of targets that were delivered
}

func (s *cutSource) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	r, err := s.Source.Open(ctx, name, off, n)
	if err != nil || !strings.HasPrefix(name, "targets/") {
		return r, err
	}
	return &cutReader{ctx, r, s}, nil
}

type cutReader struct {
	ctx context.Context
	io.ReadCloser
	s *cutSource
}

func (r *cutReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, context.Cause(r.ctx)
	}
	if r.s.end != nil {
		if r.s.bytes >= r.s.after {
			return 0, r.s.end()
		}
		p = p[:min(int64(len(p)), r.s.after-r.s.bytes)]
	}
	n, err := r.ReadCloser.Read(p)
	r.s.bytes += int64(n)
	return n, err
}

// fileTarget is a client of a repository with one target of n bytes.
func fileTarget(t *testing.T, n int) (*tuf, *cutSource, *update.Target, []byte) {
	f := newForge(t)
	data := image("file", n)
	f.publish(obj{"targets": obj{"dir/file": f.addTarget("dir/file", data)}})
	src := &cutSource{Source: f}
	c := newTUF(t, f, func(c *update.ClientConfig) { c.Images, c.Limits.Attempts = src, 1 })
	require.NoError(t, c.refresh())
	tgt, err := c.Target(t.Context(), "dir/file")
	require.NoError(t, err)
	return c, src, tgt, data
}

func entries(t *testing.T, dir string) (out []string) {
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

func TestDownloadFileContinuesWhereItWasCut(t *testing.T) {
	const size = 1 << 20
	for name, cut := range map[string]func(cancel func()) func() error{
		"connection lost": func(func()) func() error { return func() error { return io.ErrUnexpectedEOF } },
		"context ended": func(cancel func()) func() error {
			return func() error { cancel(); return context.Canceled }
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, src, tgt, data := fileTarget(t, size)
			dir := t.TempDir()
			file := filepath.Join(dir, "file")
			require.NoError(t, os.WriteFile(file, []byte("what was there"), 0o600))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			src.after, src.end = size*8/10, cut(cancel)
			var seen int64
			err := c.DownloadFile(ctx, tgt, file, func(done, total int64) { seen = done })
			require.Error(t, err)
			assert.InDelta(t, size*8/10, seen, 1)
			old, err := os.ReadFile(file)
			require.NoError(t, err)
			assert.Equal(t, "what was there", string(old), "a reader never sees half of it")

			src.end, src.bytes = nil, 0
			require.NoError(t, c.DownloadFile(t.Context(), tgt, file, nil))
			assert.LessOrEqual(t, src.bytes, int64(size*21/100), "a cut at 80 % refetches at most 21 %")
			got, err := os.ReadFile(file)
			require.NoError(t, err)
			assert.True(t, bytes.Equal(data, got))
			assert.Equal(t, []string{"file"}, entries(t, dir))

			src.bytes = 0
			require.NoError(t, c.DownloadFile(t.Context(), tgt, file, nil))
			assert.Zero(t, src.bytes, "what is there already is not fetched again")
		})
	}
}

// What a power cut left of the hidden file is not the target's beginning.
func TestDownloadFileOverGarbageStartsAgain(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"flipped":  func(b []byte) []byte { b[100] ^= 1; return b },
		"zeroed":   func(b []byte) []byte { return make([]byte, len(b)) },
		"too long": func(b []byte) []byte { return make([]byte, 1<<20) },
		"empty":    func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			c, src, tgt, data := fileTarget(t, 300<<10)
			dir := t.TempDir()
			src.after, src.end = 200<<10, func() error { return io.ErrUnexpectedEOF }
			require.Error(t, c.DownloadFile(t.Context(), tgt, filepath.Join(dir, "file"), nil))
			part := filepath.Join(dir, entries(t, dir)[0])
			left, err := os.ReadFile(part)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(part, damage(left), 0o600))
			src.end = nil
			require.NoError(t, c.DownloadFile(t.Context(), tgt, filepath.Join(dir, "file"), nil))
			got, err := os.ReadFile(filepath.Join(dir, "file"))
			require.NoError(t, err)
			assert.True(t, bytes.Equal(data, got))
		})
	}
}

func TestDownloadFileLeavesNothingOfWrongContent(t *testing.T) {
	for name, change := range map[string]struct {
		data func([]byte) []byte
		want error
	}{
		"flipped": {func(b []byte) []byte { b[0] ^= 1; return b }, update.ErrHash},
		"shorter": {func(b []byte) []byte { return b[:10] }, update.ErrHash},
		"longer":  {func(b []byte) []byte { return append(b, 0) }, update.ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			c, src, tgt, _ := fileTarget(t, 1000)
			f := src.Source.(*forge)
			for n, data := range f.files {
				if strings.HasPrefix(n, "targets/") {
					f.files[n] = change.data(bytes.Clone(data))
				}
			}
			dir := t.TempDir()
			require.ErrorIs(t, c.DownloadFile(t.Context(), tgt, filepath.Join(dir, "file"), nil), change.want)
			assert.Empty(t, entries(t, dir))
		})
	}
}

func TestDownloadFileByTwoAtOnce(t *testing.T) {
	c, src, tgt, _ := fileTarget(t, 1000)
	file := filepath.Join(t.TempDir(), "file")
	src.end = func() error {
		err := c.DownloadFile(t.Context(), tgt, file, nil)
		return errors.Join(err, syscall.EPIPE)
	}
	require.ErrorIs(t, c.DownloadFile(t.Context(), tgt, file, nil), update.ErrBusy)
}

func TestDownloadFileOfNewerContentForgetsTheOlder(t *testing.T) {
	c, src, tgt, _ := fileTarget(t, 100<<10)
	dir := t.TempDir()
	src.after, src.end = 50<<10, func() error { return io.ErrUnexpectedEOF }
	require.Error(t, c.DownloadFile(t.Context(), tgt, filepath.Join(dir, "file"), nil))
	require.Len(t, entries(t, dir), 1)
	src.end = nil
	f := src.Source.(*forge)
	f.publish(obj{"targets": obj{"dir/file": f.addTarget("dir/file", []byte("newer"))}})
	require.NoError(t, c.refresh())
	tgt, err := c.Target(t.Context(), "dir/file")
	require.NoError(t, err)
	require.NoError(t, c.DownloadFile(t.Context(), tgt, filepath.Join(dir, "file"), nil))
	assert.Equal(t, []string{"file"}, entries(t, dir))
}

func TestD14FullDiskKeepsTheOldFile(t *testing.T) {
	testenv.Root(t)
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=256k", "none", dir).CombinedOutput(); err != nil {
		testenv.Missing(t, "a small tmpfs: "+string(out))
	}
	defer func() { require.NoError(t, exec.Command("umount", dir).Run()) }()
	c, _, tgt, _ := fileTarget(t, 1<<20)
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("old"), 0o600))
	require.ErrorIs(t, c.DownloadFile(t.Context(), tgt, file, nil), update.ErrNoSpace)
	old, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "old", string(old))
	assert.Equal(t, []string{"file"}, entries(t, dir), "the disk is not left full")
}
