package tlsconn

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestFramesOfVersion1 holds the wire format to the golden file.
func TestFramesOfVersion1(t *testing.T) {
	until := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	frames := []any{
		&openFrame{Version: 1, Kind: kindControl},
		&openFrame{Version: 1, Kind: kindFlow, Flow: "00112233445566778899aabbccddeeff", Proto: TCP, Host: "api.partner.example", Port: 443},
		&replyFrame{Version: 1},
		&replyFrame{Version: 1, Code: CodeDenied, Rule: "partners", Reason: "no rule allows it"},
		&controlFrame{Version: 1, Type: ctlHello, Attest: true, Policy: 42},
		&controlFrame{Version: 1, Type: ctlAttested, Until: &until},
		&controlFrame{Version: 1, Type: ctlEnd, Flow: "00112233445566778899aabbccddeeff", Up: 7, Down: 9},
		&controlFrame{Version: 1, Type: ctlBye, Reason: "replaced"},
	}
	var got bytes.Buffer
	for _, f := range frames {
		require.NoError(t, writeFrame(&got, f))
	}
	golden, err := os.ReadFile("testdata/frames-v1.bin")
	require.NoError(t, err)
	assert.Equal(t, golden, got.Bytes())
	r := bytes.NewReader(golden)
	for _, want := range frames {
		var back any
		switch want.(type) {
		case *openFrame:
			back = &openFrame{}
		case *replyFrame:
			back = &replyFrame{}
		default:
			back = &controlFrame{}
		}
		require.NoError(t, readFrame(r, back))
		assert.Equal(t, want, back)
	}
}

// TestPlainFramesAreJSON holds the frames that are written and read without
// encoding/json to what it makes of them.
func TestPlainFramesAreJSON(t *testing.T) {
	text := rapid.SampledFrom([]string{"", "flow", "end", "tcp", "udp", "00112233445566778899aabbccddeeff", "a.example", "2001:db8::1", "A", "\u00fc", "a\"b", "<", "\x00", "\xff"})
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.OneOf(rapid.Uint64(), rapid.SampledFrom([]uint64{0, 1, 10, math.MaxUint64}))
		version := rapid.SampledFrom([]int{1, 1, 1, 0, 2}).Draw(t, "version")
		frames := []any{
			openFrame{Version: version, Kind: text.Draw(t, "kind"), Flow: text.Draw(t, "flow"), Proto: text.Draw(t, "proto"), Host: text.Draw(t, "host"), Port: uint16(n.Draw(t, "port"))},
			replyFrame{Version: version, Code: Code(n.Draw(t, "code")), Rule: text.Draw(t, "rule"), Reason: text.Draw(t, "reason")},
			replyFrame{Version: version},
			controlFrame{Version: version, Type: text.Draw(t, "type"), Flow: text.Draw(t, "flow"), Up: n.Draw(t, "up"), Down: n.Draw(t, "down"), Code: Code(n.Draw(t, "code")), Policy: rapid.SampledFrom([]uint64{0, 0, 1}).Draw(t, "policy")},
		}
		for _, f := range frames {
			want, err := json.Marshal(f)
			require.NoError(t, err)
			got, err := appendFrame(nil, f)
			require.NoError(t, err)
			require.Equal(t, string(want), string(got[4:]))
			sameJSON(t, want)
			i, j := rapid.IntRange(0, len(want)).Draw(t, "i"), rapid.IntRange(0, len(want)).Draw(t, "j")
			sameJSON(t, slices.Concat(want[:min(i, j)], []byte(rapid.SampledFrom([]string{"", " ", "0", "}", "\"", ",\"up\":1"}).Draw(t, "in between")), want[max(i, j):]))
		}
	})
}

// sameJSON reads bytes in both ways, if they can be, as every frame.
func sameJSON(t require.TestingT, body []byte) {
	for _, f := range []struct{ plain, strict any }{{&openFrame{}, &openFrame{}}, {&replyFrame{}, &replyFrame{}}, {&controlFrame{}, &controlFrame{}}} {
		if readPlain(body, f.plain) {
			require.NoError(t, strictJSON(body, f.strict), "%s", body)
			require.Equal(t, f.strict, f.plain, "%s", body)
		}
	}
}
