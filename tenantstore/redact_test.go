package tenantstore

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Key material redacts itself however it is printed.
func TestSecretsRedactThemselves(t *testing.T) {
	s := secret(strings.Repeat("K", secretSize))
	b, err := json.Marshal(s)
	require.NoError(t, err)
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", s)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "key", s)
	for _, out := range []string{string(b), log.String(), fmt.Sprint(s), fmt.Sprintf("%v %+v %#v %x %s %q %d", s, s, s, s, s, s, s), fmt.Sprint(struct{ K secret }{s})} {
		assert.NotContains(t, out, "KK")
		assert.NotContains(t, out, "4b4b")
		assert.NotContains(t, out, "75 75")
		assert.Contains(t, out, "[redacted]")
	}
	s.zero()
	assert.Equal(t, make([]byte, secretSize), []byte(s))
}
