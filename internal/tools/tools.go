//go:build tools

// Package tools pins the programs that checks and reports use, in a module of
// its own so that no user of the library downloads them.
package tools

import (
	_ "github.com/defenseunicorns/go-oscal"
	_ "golang.org/x/perf/cmd/benchstat"
	_ "golang.org/x/tools/cmd/deadcode"
	_ "golang.org/x/vuln/cmd/govulncheck"
	_ "honnef.co/go/tools/cmd/staticcheck"
)
