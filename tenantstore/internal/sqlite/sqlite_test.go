package sqlite_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tenantstore/engine/enginetest"
	"github.com/trusttree/trusttree/tenantstore/internal/sqlite"
)

func TestConformance(t *testing.T) {
	e, err := sqlite.New(t.TempDir())
	require.NoError(t, err)
	enginetest.Run(t, e)
	require.NoError(t, e.Close())
}
