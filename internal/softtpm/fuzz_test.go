package softtpm_test

import (
	"encoding/binary"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/softtpm"
)

// keeper collects the commands that a scenario sends.
type keeper struct {
	t    *softtpm.TPM
	sent [][]byte
}

func (k *keeper) Send(c []byte) ([]byte, error) {
	k.sent = append(k.sent, append([]byte(nil), c...))
	return k.t.Send(c)
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
			before := allocated()
			rsp, err := tpm.Send(command)
			require.NoError(t, err)
			require.GreaterOrEqual(t, len(rsp), 10)
			require.LessOrEqual(t, len(rsp), 4096)
			require.Equal(t, len(rsp), int(binary.BigEndian.Uint32(rsp[2:])))
			if code := binary.BigEndian.Uint32(rsp[6:]); code != 0 {
				require.Len(t, rsp, 10)
				require.Less(t, allocated()-before, uint64(1<<20), "a command that is refused costs little memory")
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

// allocated returns how many bytes this process has allocated so far.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
