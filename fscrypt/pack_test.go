package fscrypt_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt"
)

func TestSmallFilesArePacked(t *testing.T) {
	dir, v := passVolume(t)
	fscrypt.SetMaxLogged(v, 15_000)
	content := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, 100+i) }
	for i := range 300 {
		require.NoError(t, v.WriteFile(fmt.Sprintf("d/%d", i), content(i)))
	}
	packs := objects(t, dir)
	assert.NotEmpty(t, packs)
	assert.Less(t, len(packs), 50)
	check := func() {
		for i := range 300 {
			b, err := v.ReadFile(fmt.Sprintf("d/%d", i))
			require.NoError(t, err)
			require.True(t, bytes.Equal(content(i), b), i)
			f, err := v.OpenFile(fmt.Sprintf("d/%d", i))
			require.NoError(t, err)
			p := make([]byte, 10)
			_, err = f.ReadAt(p, 50)
			require.NoError(t, err)
			require.Equal(t, content(i)[:10], p)
			require.NoError(t, f.Close())
		}
	}
	check()
	lock(t, v)
	v, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
	require.NoError(t, err)
	check()
	require.NoError(t, v.Rotate(t.Context(), pass))
	check()
	lock(t, v)
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
	require.NoError(t, err)
	check()
	fscrypt.SetMaxLogged(v, 1)
	require.NoError(t, v.WriteFile("last", []byte("packs everything")))
	flip(t, objects(t, dir)[0], 1000)
	bad := 0
	for i := range 300 {
		if _, err := v.ReadFile(fmt.Sprintf("d/%d", i)); err != nil {
			require.ErrorIs(t, err, fscrypt.ErrTampered)
			bad++
		}
	}
	assert.Equal(t, 1, bad, "damage stays with the file that has it")
	for i := range 300 {
		require.NoError(t, v.Remove(fmt.Sprintf("d/%d", i)))
	}
	require.NoError(t, v.Remove("last"))
	assert.Empty(t, objects(t, dir), "a pack goes with its last file")
	lock(t, v)
}
