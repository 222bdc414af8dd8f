package mux_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tlsconn/internal/mux"
)

// TestSinkKeepsTheOrder: a sink takes some of what comes, or nothing, and the
// reader has the rest, each byte once and in order, also when it is slow.
func TestSinkKeepsTheOrder(t *testing.T) {
	for name, take := range map[string]func(n int) int{
		"all":     func(n int) int { return n },
		"nothing": func(int) int { return 0 },
		"some":    func(n int) int { return rand.IntN(n + 1) },
		"rarely": func(n int) int {
			if rand.IntN(10) == 0 {
				return n
			}
			return 0
		},
	} {
		t.Run(name, func(t *testing.T) {
			client, server, cut := pair(t, options)
			defer cut()
			a, b := stream(t, client, server)
			sent := make([]byte, 12<<20) // many windows
			r := rand.NewChaCha8([32]byte{1})
			_, _ = r.Read(sent)
			var wg sync.WaitGroup
			wg.Go(func() {
				for rest := sent; len(rest) > 0; {
					n := min(len(rest), 1+rand.IntN(rand.IntN(600_000)+1))
					_, err := a.Write(rest[:n])
					assert.NoError(t, err)
					rest = rest[n:]
				}
				assert.NoError(t, a.CloseWrite())
			})
			var got []byte // by the sink while a Read waits, and by its caller else
			b.SetSink(func(p []byte) int {
				n := take(len(p))
				got = append(got, p[:n]...)
				return n
			})
			buf := make([]byte, 100_000)
			for {
				n, err := b.Read(buf)
				got = append(got, buf[:n]...)
				if err == io.EOF {
					break
				}
				require.NoError(t, err)
				if rand.IntN(50) == 0 {
					time.Sleep(time.Millisecond)
				}
			}
			wg.Wait()
			require.Len(t, got, len(sent))
			assert.Equal(t, sha256.Sum256(sent), sha256.Sum256(got))
		})
	}
}

// TestSinkEndsWithTheStream: a sink is not asked for what comes before a Read
// waits, nor after it was taken off, and hides no reset.
func TestSinkEndsWithTheStream(t *testing.T) {
	client, server, cut := pair(t, options)
	defer cut()
	a, b := stream(t, client, server)
	var calls, taken atomic.Int32
	b.SetSink(func(p []byte) int {
		calls.Add(1)
		taken.Add(int32(len(p)))
		return len(p)
	})
	_, err := a.Write([]byte("nobody reads"))
	require.NoError(t, err)
	stream(t, client, server) // which follows it
	got := make([]byte, 12)
	_, err = io.ReadFull(b, got)
	require.NoError(t, err)
	assert.Equal(t, "nobody reads", string(got))
	assert.Zero(t, calls.Load())

	end := make(chan error, 1)
	go func() {
		for {
			if _, err := b.Read(got); err != nil {
				end <- err
				return
			}
		}
	}()
	for taken.Load() < 3 { // what comes before the Read waits is for it
		_, err := a.Write([]byte("x"))
		require.NoError(t, err)
		time.Sleep(time.Millisecond)
	}
	require.NoError(t, a.Reset(77))
	assert.Equal(t, &mux.ResetError{Code: 77, Remote: true}, <-end)

	a, b = stream(t, client, server)
	b.SetSink(func(p []byte) int { calls.Add(1 << 20); return len(p) })
	b.SetSink(nil)
	go func() { _, _ = a.Write([]byte("y")) }()
	_, err = io.ReadFull(b, got[:1])
	require.NoError(t, err)
	assert.Less(t, calls.Load(), int32(1<<20))
}

// TestWriteLoaded: bytes are asked for when the turn has come, no more of them
// than the window has room for, and what was not used of it is given back.
func TestWriteLoaded(t *testing.T) {
	client, server, cut := pair(t, options)
	defer cut()
	a, b := stream(t, client, server)
	const window = 1 << 20
	for range 3 * window / mux.MinTurn { // reserves three windows
		n, err := a.WriteLoaded(func(int) ([]byte, error) { return []byte("z"), nil })
		require.NoError(t, err)
		require.Equal(t, 1, n)
	}
	boom := errors.New("boom")
	n, err := a.WriteLoaded(func(int) ([]byte, error) { return nil, boom })
	assert.Zero(t, n)
	assert.ErrorIs(t, err, boom)
	n, err = a.WriteLoaded(func(int) ([]byte, error) { return nil, nil })
	assert.Zero(t, n)
	assert.NoError(t, err)
	_, err = io.ReadFull(b, make([]byte, 3*window/mux.MinTurn))
	require.NoError(t, err)

	var wg sync.WaitGroup
	fill := bytes.Repeat([]byte{7}, mux.MaxTurn)
	total := 0
	_ = a.SetWriteDeadline(time.Now().Add(time.Second))
	for err == nil { // nobody reads: the window fills, and then it waits
		n, err = a.WriteLoaded(func(room int) ([]byte, error) {
			assert.LessOrEqual(t, room, mux.MaxTurn)
			return fill[:room], nil
		})
		total += n
	}
	assert.ErrorContains(t, err, "timeout")
	assert.LessOrEqual(t, total, window)
	assert.Greater(t, total, mux.MinWindow/2)
	_ = a.SetWriteDeadline(time.Time{})
	wg.Go(func() {
		_, err := a.WriteLoaded(func(int) ([]byte, error) {
			assert.Fail(t, "loaded for a stream that was reset")
			return nil, nil
		})
		assert.Equal(t, &mux.ResetError{Code: 9, Remote: true}, err)
	})
	require.NoError(t, b.Reset(9))
	wg.Wait()
}
