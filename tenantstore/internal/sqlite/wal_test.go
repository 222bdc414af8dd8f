package sqlite

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/ncruces/go-sqlite3/util/vfsutil"
	"github.com/ncruces/go-sqlite3/vfs"
	"github.com/stretchr/testify/require"
)

// disk is a file that notes what was there at each sync, and can fail.
type disk struct {
	vfsutil.SliceFile
	synced []byte
	fail   error
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if d.fail != nil {
		return 0, d.fail
	}
	return d.SliceFile.WriteAt(p, off)
}

func (d *disk) Sync(vfs.SyncFlag) error {
	d.synced = append([]byte(nil), d.SliceFile...)
	return nil
}

// TestGatheredLogIsThePlainLog does the same to a gathering file and to a plain
// one: every read and size agrees, and so does what is on the disk at each sync.
func TestGatheredLogIsThePlainLog(t *testing.T) {
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		under, plain := &disk{}, &disk{}
		g := &gathered{File: under, pool: new(sync.Pool)}
		at := int64(0)
		for range 400 {
			switch rnd.IntN(12) {
			case 0:
				require.NoError(t, g.Sync(0))
				require.NoError(t, plain.Sync(0))
				require.Equal(t, plain.synced, under.synced)
				require.Nil(t, g.mem, "an idle log holds no memory")
			case 1:
				a, b := make([]byte, rnd.IntN(9000)), make([]byte, 9000)
				b = b[:len(a)]
				off := rnd.Int64N(at + 1)
				n, err1 := g.ReadAt(a, off)
				m, err2 := plain.ReadAt(b, off)
				require.Equal(t, m, n)
				require.Equal(t, err2, err1)
				require.Equal(t, b, a)
			case 2:
				x, err := g.Size()
				require.NoError(t, err)
				y, _ := plain.Size()
				require.Equal(t, y, x)
			case 3:
				at = rnd.Int64N(at + 1)
				require.NoError(t, g.Truncate(at))
				require.NoError(t, plain.Truncate(at))
			case 4:
				at = rnd.Int64N(at + 1) // as after a rollback, or from the start
			default:
				p := make([]byte, []int{24, 4096, 32, 1 + rnd.IntN(90_000)}[rnd.IntN(4)])
				for i := 0; i < len(p); i += 7 {
					p[i] = byte(rnd.Uint32())
				}
				n, err := g.WriteAt(p, at)
				require.NoError(t, err)
				require.Len(t, p, n)
				_, _ = plain.WriteAt(p, at)
				at += int64(len(p))
			}
		}
		require.NoError(t, g.Close())
		require.Equal(t, []byte(plain.SliceFile), []byte(under.SliceFile))
	}
}

// TestGatheredWriteThatFailsIsNotForgotten fails the disk: no sync, read or
// size succeeds until what was gathered is written.
func TestGatheredWriteThatFailsIsNotForgotten(t *testing.T) {
	under := &disk{}
	g := &gathered{File: under, pool: new(sync.Pool)}
	_, err := g.WriteAt([]byte("frame"), 0)
	require.NoError(t, err)
	under.fail = errors.New("no space")
	require.Error(t, g.Sync(0))
	_, err = g.ReadAt(make([]byte, 1), 0)
	require.Error(t, err)
	_, err = g.Size()
	require.Error(t, err)
	require.Empty(t, under.synced)
	under.fail = nil
	require.NoError(t, g.Sync(0))
	require.Equal(t, "frame", string(under.synced))
}
