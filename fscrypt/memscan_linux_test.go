package fscrypt_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

// TestMemoryScan seals and unseals a key, erases it, and looks for copies of
// it in the whole memory of this process. Built with
// GOEXPERIMENT=runtimesecret there are none.
func TestMemoryScan(t *testing.T) {
	dev, _ := tpmtest.New(t) // in a process of its own
	boot(t, dev, "image 1")
	p := &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{imagePCRs("image 1")}, UnsafeNoLatch: true}
	b := fscrypt.Binding{Volume: "v", Label: "l", Slot: "s"}
	mask := make([]byte, 32) // what is looked for is only ever here, masked
	rand.Read(mask)
	masked := make([]byte, 32)
	s := fscrypt.RandomSecret()
	require.NoError(t, s.Use(func(k []byte) error {
		for i := range k {
			masked[i] = k[i] ^ mask[i]
		}
		return nil
	}))
	require.Positive(t, scan(t, masked, mask), "the scan finds the key while it is there")
	fscrypt.Erasing(func() {
		slot, err := p.Wrap(t.Context(), s, b)
		require.NoError(t, err)
		for range 3 {
			out, err := p.Unwrap(t.Context(), slot, b)
			require.NoError(t, err)
			out.Erase()
		}
	})
	s.Erase()
	runtime.GC()
	debug.FreeOSMemory()
	runtime.GC()
	n := scan(t, masked, mask)
	t.Logf("%d copies of the key left in memory", n)
	if strings.Contains(os.Getenv("GOEXPERIMENT")+runtime.Version(), "runtimesecret") {
		assert.Zero(t, n)
	}
}

// scan counts the copies of a masked key in this process's writable memory.
func scan(t *testing.T, masked, mask []byte) int {
	const size = 1 << 20
	buf, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	require.NoError(t, err)
	defer unix.Munmap(buf)
	self := uintptr(unsafe.Pointer(&buf[0]))
	maps, err := os.ReadFile("/proc/self/maps")
	require.NoError(t, err)
	mem, err := os.Open("/proc/self/mem")
	require.NoError(t, err)
	defer mem.Close()
	first := masked[0] ^ mask[0]
	found := 0
	for line := range strings.SplitSeq(string(maps), "\n") {
		var from, to uintptr
		var perm string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perm); n < 3 || !strings.HasPrefix(perm, "rw") || from == self {
			continue
		}
		for at := from; at < to; at += size - 32 {
			n, err := mem.ReadAt(buf[:min(size, to-at)], int64(at))
			if err != nil && n == 0 {
				break
			}
			b := buf[:n]
			for off := 0; ; off++ {
				i := bytes.IndexByte(b[off:], first)
				if i < 0 || off+i+32 > len(b) {
					break
				}
				off += i
				same := 0
				for same < 32 && b[off+same]^mask[same] == masked[same] {
					same++
				}
				if same == 32 && !(at+uintptr(off) >= self && at+uintptr(off) < self+size) {
					found++
				}
			}
		}
	}
	return found
}
