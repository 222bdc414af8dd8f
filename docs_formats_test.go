package trusttree_test

import (
	"os"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestFormatVersions holds the table in docs/compatibility.md against the
// constants of the code.
func TestFormatVersions(t *testing.T) {
	page, err := os.ReadFile("docs/compatibility.md")
	require.NoError(t, err)
	code := map[string][2]string{
		"messages of enrolment and attestation":      {"attest/message.go", `messageVersion = (\d+)`},
		"registry entries of devices and challenges": {"attest/registry/device.go", `FormatVersion = (\d+)`},
		"module reports":                        {"moduleid/report.go", `reportVersion = (\d+)`},
		"appraisal policies (reference values)": {"secureboot/policyjson.go", `policyVersion = (\d+)`},
		"volume headers":                        {"fscrypt/header.go", `headerVersion = (\d+)`},
		"share messages between node and cloud": {"fscrypt/internal/wire/wire.go", `Version  = (\d+)`},
		"tunnel frames":                         {"tlsconn/wire.go", `wireVersion = (\d+)`},
		"tunnel policies":                       {"tlsconn/policyjson.go", `policyVersion  = (\d+)`},
		"catalogue of tenants":                  {"tenantstore/catalog.go", `e\.Version = (\d+)`},
		"system record of a store":              {"tenantstore/system.go", `b\.Version = (\d+)`},
		"`bootstrap.json`":                      {"examples/wire/bootstrap.go", `BootstrapVersion = (\d+)`},
	}
	rows := regexp.MustCompile(`(?m)^\| ([^|]+) \| (\d+) \|$`).FindAllSubmatch(page, -1)
	assert.Len(t, rows, len(code))
	for _, row := range rows {
		where, ok := code[string(row[1])]
		if !assert.True(t, ok, "%s", row[1]) {
			continue
		}
		source, err := os.ReadFile(where[0])
		require.NoError(t, err)
		m := regexp.MustCompile(where[1]).FindSubmatch(source)
		require.NotNil(t, m, "%s", where)
		assert.Equal(t, string(m[1]), string(row[2]), "%s", row[1])
	}
}
