package softtpm_test

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestGarbageOnAConnectionHarmsNobodyElse sends what is no command, commands
// that claim any size, and half commands, while another client works on.
func TestGarbageOnAConnectionHarmsNobodyElse(t *testing.T) {
	tpm := newSoft(t)
	startup(t, tpm)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tpm.Serve(ctx, l) }()
	dial := func() net.Conn {
		c, err := net.Dial("unix", l.Addr().String())
		require.NoError(t, err)
		require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
		return c
	}
	good := dial()
	random := []byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7B, 0, 8}
	works := func() {
		_, err := good.Write(random)
		require.NoError(t, err)
		rsp := make([]byte, 20)
		_, err = io.ReadFull(good, rsp)
		require.NoError(t, err)
		require.Zero(t, binary.BigEndian.Uint32(rsp[6:]))
	}
	var hanging []net.Conn
	for _, n := range []int{0, 1, 9, 10, 11} { // hangs in the middle
		c := dial()
		_, err := c.Write(random[:n])
		require.NoError(t, err)
		hanging = append(hanging, c)
		works()
	}
	for _, size := range []uint32{0, 9, 4097, 1 << 31, 0xFFFFFFFF} {
		c := dial()
		bad := append([]byte(nil), random...)
		binary.BigEndian.PutUint32(bad[2:], size)
		_, err := c.Write(bad)
		require.NoError(t, err)
		_, err = c.Read(make([]byte, 1))
		require.Error(t, err, "closed")
		require.NoError(t, c.Close())
		works()
	}
	cancel()
	require.NoError(t, <-done)
	for _, c := range append(hanging, good) {
		_ = c.Close()
	}
}
