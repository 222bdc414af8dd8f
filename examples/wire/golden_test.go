package wire_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/examples/wire"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestGolden holds the formats still: what version 1 wrote must be read, and
// written, for as long as version 1 is read.
func TestGolden(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	const root = "-----BEGIN CERTIFICATE-----\nMIIBfzCCASagAwIBAgIQe/8ovoHxWhhFfSt/l9UFszAKBggqhkjOPQQDAjAgMR4w\nHAYDVQQDExVjaXR5LmV4YW1wbGUgZmxlZXQgQ0EwHhcNMjYxMTIzMDI1MTM3WhcN\nMzYxMTIwMDI1NjM3WjAgMR4wHAYDVQQDExVjaXR5LmV4YW1wbGUgZmxlZXQgQ0Ew\nWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAARIqC5P+pRAWDvkrcd6oeW63hoShF07\nl4oBp5KyoAMymA2HfC0oONBI6m5Jk+kzkStvXc2gQOhpy1PkvOzp5938o0IwQDAO\nBgNVHQ8BAf8EBAMCAQYwDwYDVR0TAQH/BAUwAwEB/zAdBgNVHQ4EFgQUxisYm2U2\nolOtx36yAdYFYReJPnIwCgYIKoZIzj0EAwIDRwAwRAIgVUnsQ10f8lWks38NFl73\n22Dr/YU4pjtXanjDE8rDkjUCICw5erdZPazldjtM9Dw0uZhaS3Q7WSXDafEp93ea\nuA6j\n-----END CERTIFICATE-----\n"
	for name, v := range map[string]any{
		"bootstrap.v1.json": &wire.Bootstrap{
			Version: 1, TrustDomain: "city.example", Roots: root, EnrollURL: "https://cloud.city.example:8440", Gateway: "cloud.city.example:8441",
			GatewayID: "spiffe://city.example/gateway", TUFRoot: []byte("root"), PolicyKey: []byte("policy"), OwnerKey: []byte("owner"),
			SpoolTo: "age1pq1spool", RecoverTo: "age1pq1recover", ModuleRevocations: []byte("list"), Token: "token", TokenExpiry: at,
		},
		"bootstrap.v2.json": &wire.Bootstrap{
			Version: 2, TrustDomain: "city.example", Roots: root, EnrollURL: "https://cloud.city.example:8440", Gateway: "cloud.city.example:8441", MoreGateways: []string{"cloud-2.city.example:8441"}, MoreEnrollURLs: []string{"https://cloud-2.city.example:8440"},
			GatewayID: "spiffe://city.example/gateway", TUFRoot: []byte("root"), PolicyKey: []byte("policy"), OwnerKey: []byte("owner"),
			SpoolTo: "age1pq1spool", RecoverTo: "age1pq1recover", ModuleRevocations: []byte("list"), Token: "token", TokenExpiry: at,
		},
		"batch.v1.json":   &wire.Batch{Version: 1, ID: "id", Stream: "lamp", Records: []wire.Sample{{Time: at, Value: []byte(`{"lux":20}`)}}},
		"verdict.v1.json": &wire.Verdict{Version: 1, OK: true, Until: at},
	} {
		data, err := json.MarshalIndent(v, "", "  ")
		require.NoError(t, err)
		file := filepath.Join("testdata", name)
		if *update {
			require.NoError(t, os.MkdirAll("testdata", 0o755))
			require.NoError(t, os.WriteFile(file, append(data, '\n'), 0o644))
		}
		golden, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.Equal(t, string(golden), string(data)+"\n", name)
		if _, ok := v.(*wire.Bootstrap); ok {
			got, err := wire.ParseBootstrap(golden)
			require.NoError(t, err)
			assert.Equal(t, v, got)
		}
	}
}
