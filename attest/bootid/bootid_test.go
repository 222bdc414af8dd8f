package bootid_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/bootid"
)

func ExampleCollect() {
	c := attest.NodeConfig{Collectors: []attest.Collector{bootid.Collect}}
	fmt.Println(len(c.Collectors))
	// Output: 1
}

func TestCollect(t *testing.T) {
	mediaType, body, err := bootid.Collect(context.Background(), nil)
	require.NoError(t, err)
	assert.Equal(t, bootid.MediaType, mediaType)
	id, err := bootid.Parse(body)
	require.NoError(t, err)
	_, again, err := bootid.Collect(context.Background(), nil)
	require.NoError(t, err)
	assert.Equal(t, body, again, "one boot, one ID")
	assert.Len(t, id, 36)
}

func TestNoBootID(t *testing.T) {
	const good = "0a1b2c3d-0000-4000-8000-0123456789ab"
	for _, s := range []string{good, good + "\n"} {
		id, err := bootid.Parse([]byte(s))
		require.NoError(t, err)
		assert.Equal(t, good, id)
	}
	for name, s := range map[string]string{
		"empty": "", "newline": "\n", "two newlines": good + "\n\n", "long": strings.Repeat(good, 2), "short": good[1:],
		"upper case": strings.ToUpper(good), "no hyphens": strings.ReplaceAll(good, "-", "0"), "zero byte": good[:35] + "\x00",
	} {
		_, err := bootid.Parse([]byte(s))
		require.ErrorIs(t, err, bootid.ErrMalformed, name)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("0a1b2c3d-0000-4000-8000-0123456789ab\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if id, err := bootid.Parse(b); err == nil {
			require.Len(t, id, 36)
		}
	})
}
