package tenantstore_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tenantstore"
)

// TestFloodOfRefusalsIsCounted is refused thousands of times, under ever new
// names: each is refused, the first are in the log one by one, the others are
// counted in it, and the log does not grow with them.
func TestFloodOfRefusalsIsCounted(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	a := w.tenant(s, "acme")
	node := w.cert("node-1")
	const floods = 3000
	for i := range floods {
		_, err := s.Authenticate(ctx, node, fmt.Sprintf("stream-%d", i))
		require.ErrorIs(t, err, tenantstore.ErrDenied)
	}
	_, err := a.Collection("c").Put(ctx, []byte("k"), nil)
	require.NoError(t, err, "others go on")
	require.NoError(t, s.Close(ctx))
	assert.Contains(t, w.log.String(), `"tenantstore.refusals_counted"`)
	fi, err := os.Stat(filepath.Join(w.dir, "store", "audit", "entries"))
	require.NoError(t, err)
	assert.Less(t, fi.Size(), int64(floods*300))
	w.open()
}
