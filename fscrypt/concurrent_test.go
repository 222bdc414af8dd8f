package fscrypt_test

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt"
)

// TestConcurrentUse writes, reads, renames, appends and asks while the volume
// key is rotated and protectors change.
func TestConcurrentUse(t *testing.T) {
	c := newCloud(t)
	p := fscrypt.All(pass, c.remote("node"))
	dir := t.TempDir()
	v, err := fscrypt.Create(t.Context(), dir, loose, p)
	require.NoError(t, err)
	lock(t, v)
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.NoError(t, err)
	fscrypt.SetMaxLogged(v, 3000)
	content := func(g, i int) []byte { return bytes.Repeat([]byte{byte(g), byte(i)}, 200+i*700) }
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 15 {
				name := fmt.Sprintf("g%d/%d", g, i)
				assert.NoError(t, v.WriteFile(name+".new", content(g, i)))
				assert.NoError(t, v.Rename(name+".new", name))
				b, err := v.ReadFile(name)
				assert.NoError(t, err)
				assert.True(t, bytes.Equal(content(g, i), b), name)
				v.Status()
			}
		})
	}
	for range 3 {
		assert.NoError(t, v.Rotate(t.Context(), p))
		id, err := v.AddProtector(t.Context(), &fscrypt.Passphrase{Passphrase: "q", WorkFactor: 1})
		assert.NoError(t, err)
		assert.NoError(t, v.RemoveProtector(t.Context(), id))
		_, err = v.RenewLease(t.Context())
		assert.NoError(t, err, "the lease is the new slot's")
	}
	wg.Wait()
	for g := range 4 {
		for i := range 15 {
			b, err := v.ReadFile(fmt.Sprintf("g%d/%d", g, i))
			require.NoError(t, err)
			require.True(t, bytes.Equal(content(g, i), b))
		}
	}
	lock(t, v)
}
