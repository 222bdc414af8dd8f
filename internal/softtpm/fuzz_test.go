package softtpm_test

import (
	"encoding/binary"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/softtpm"
)

// keeper collects the commands that a scenario sends, and how much memory each
// takes.
type keeper struct {
	t    *softtpm.TPM
	sent [][]byte
	most map[uint32]*memory // that a command took, by its code
}

func (k *keeper) Send(c []byte) ([]byte, error) {
	k.sent = append(k.sent, append([]byte(nil), c...))
	var rsp []byte
	var err error
	took := measure(func() { rsp, err = k.t.Send(c) })
	if k.most != nil && !slow(c) {
		cc := binary.BigEndian.Uint32(c[6:])
		if k.most[cc] == nil {
			k.most[cc] = &memory{}
		}
		k.most[cc].max(took)
	}
	return rsp, err
}

// maxMemory bounds what one command may make the TPM allocate: in one piece no
// more than the largest legal command (4096 bytes), and in all pieces together
// twelve times that, for the copies that parsing, encrypting and keeping take.
var maxMemory = memory{total: 12 * 4096, largest: 4096}

// TestMemoryOfLegalCommands holds the scenarios' commands to what the fuzzer
// holds all commands to. Making RSA keys, which takes arithmetic on big numbers
// for as long as luck wants, is left out there and here.
func TestMemoryOfLegalCommands(t *testing.T) {
	var all memory
	for range 2 { // the first round makes what Go's elliptic curves keep
		all = memory{}
		for _, s := range scenarios {
			tpm, err := softtpm.New(softtpm.Config{Seed: []byte("fuzz")})
			require.NoError(t, err)
			startup(t, tpm)
			k := &keeper{t: tpm, most: map[uint32]*memory{}}
			s.run(k)
			for cc, m := range k.most {
				if m.total > all.total || m.largest > all.largest {
					t.Logf("command 0x%03x allocates %d bytes, %d at once", cc, m.total, m.largest)
				}
				all.max(*m)
			}
		}
	}
	require.LessOrEqual(t, all.total, maxMemory.total)
	require.LessOrEqual(t, all.largest, maxMemory.largest)
}

// FuzzCommands sends a stream of commands, each as long as its header says, to
// one TPM. Whatever they are, each gets one well-formed response of at most
// 4096 bytes.
func FuzzCommands(f *testing.F) {
	for _, s := range scenarios {
		t, err := softtpm.New(softtpm.Config{Seed: []byte("fuzz")})
		require.NoError(f, err)
		startup(f, t)
		k := &keeper{t: t}
		s.run(k)
		var run []byte
		for i, c := range k.sent {
			f.Add(c)
			if run = append(run, c...); i%6 == 5 {
				f.Add(run)
				run = nil
			}
		}
	}
	clock := time.Unix(1700000000, 0)
	f.Fuzz(func(t *testing.T, stream []byte) {
		tpm, err := softtpm.New(softtpm.Config{Seed: []byte("fuzz"), Now: func() time.Time { return clock }})
		require.NoError(t, err)
		startup(t, tpm)
		for range 16 {
			command := stream
			if len(stream) >= 10 {
				if n := int64(binary.BigEndian.Uint32(stream[2:])); n >= 10 && n < int64(len(stream)) {
					command = stream[:n]
				}
			}
			if slow(command) {
				return
			}
			var rsp []byte
			var err error
			took := measure(func() { rsp, err = tpm.Send(command) })
			require.NoError(t, err)
			require.LessOrEqual(t, took.total, maxMemory.total, "bytes allocated for %x", command)
			require.LessOrEqual(t, took.largest, maxMemory.largest, "bytes allocated at once for %x", command)
			require.GreaterOrEqual(t, len(rsp), 10)
			require.LessOrEqual(t, len(rsp), 4096)
			require.Equal(t, len(rsp), int(binary.BigEndian.Uint32(rsp[2:])))
			if code := binary.BigEndian.Uint32(rsp[6:]); code != 0 {
				require.Len(t, rsp, 10)
			}
			if stream = stream[len(command):]; len(stream) == 0 {
				return
			}
		}
	})
}

// slow says whether a command may make an RSA key: the type of the public area
// behind the sensitive one.
func slow(c []byte) bool {
	if len(c) < 10 {
		return false
	}
	switch binary.BigEndian.Uint32(c[6:]) {
	case 0x131, 0x153, 0x191:
	default:
		return false
	}
	for i := 10; i+3 < len(c); i++ {
		if c[i] == 0 && c[i+1] == 1 && c[i+2] == 0 {
			return true
		}
	}
	return false
}

// memory is what a command has allocated.
type memory struct {
	total   uint64 // bytes
	largest uint64 // bytes of the largest single allocation, rounded up to Go's size classes
}

func (m *memory) max(n memory) {
	m.total, m.largest = max(m.total, n.total), max(m.largest, n.largest)
}

// measure calls f and says what it allocated.
func measure(f func()) (m memory) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	small := uint64(0)
	for i := range after.BySize {
		if n := after.BySize[i].Mallocs - before.BySize[i].Mallocs; n > 0 {
			m.largest = uint64(after.BySize[i].Size)
			small += n * uint64(after.BySize[i].Size)
		}
	}
	m.total = after.TotalAlloc - before.TotalAlloc
	if m.total > small { // beyond all size classes
		m.largest = m.total - small
	}
	return m
}
