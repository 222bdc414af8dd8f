package tlsconn

import (
	"bytes"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
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
