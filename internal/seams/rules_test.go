package seams_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
)

const module = "github.com/trusttree/trusttree"

// packages are the seven of the house.
var packages = []string{"attest", "moduleid", "secureboot", "fscrypt", "update", "tlsconn", "tenantstore"}

// forTests reports whether a package is made for users' tests, by its name:
// such a package alone may link test TPMs.
func forTests(rel string) bool { return strings.HasSuffix(rel, "test") }

const testReason = "no production path can select a test TPM, and test hooks stay in test packages"

// rules say who may link what, each with its reason. A package matches a rule
// when its path below the module begins with one of the words in from.
var rules = []struct {
	from   []string // whose dependencies are judged
	except []string // but not these
	deny   []string // import path prefixes that must not be among them
	reason string
}{
	{packages, []string{"update"}, []string{"github.com/theupdateframework"},
		"TUF is update's business; nobody else should carry its parsers"},
	{packages, []string{"attest"}, []string{"github.com/google/go-attestation"},
		"go-attestation is for attest's interoperability; its x509 and UEFI parsers stay out of the others"},
	{packages, []string{"tenantstore"}, []string{"github.com/ncruces", "github.com/jackc", "database/sql"},
		"who stores nothing links no database"},
	{[]string{"examples/node"}, nil, []string{"github.com/ncruces", "github.com/jackc", "database/sql"},
		"a 512 MB node carries no database"},
	{[]string{"tenantstore"}, []string{"tenantstore/postgres"}, []string{"github.com/jackc"},
		"PostgreSQL is a backend that brings its own dependency"},
	{packages, nil, []string{"github.com/prometheus", "github.com/schollz", "github.com/coreos", "go.opentelemetry.io", "k8s.io"},
		"a library takes a logger and narrow hooks; metrics, bars and daemons are the application's choice"},
	{packages, []string{"tlsconn"}, []string{"github.com/landlock-lsm"}, "confinement is the tunnel's"},
	{packages, nil, []string{"github.com/libp2p"}, "the multiplexer is our own; yamux's is its peer in tests"},
	{packages, nil, []string{module + "/examples"}, "a library does not depend on its examples"},
	{packages, nil,
		[]string{module + "/internal/softtpm", module + "/internal/tpm/tpmtest", module + "/internal/testenv", "testing"},
		testReason},
	{[]string{"examples/node", "examples/cloud"}, nil,
		[]string{module + "/internal/softtpm", module + "/internal/tpm/tpmtest", module + "/attest/attesttest", module + "/moduleid/moduleidtest", module + "/update/updatetest"},
		"what runs on a pole links no test TPM and no emulated chip"},
}

type pkg struct {
	ImportPath  string
	Name        string
	Standard    bool
	Imports     []string
	Deps        []string
	CgoFiles    []string
	TestImports []string
}

func (p pkg) rel() string { return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/") }

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Name,Standard,Imports,Deps,CgoFiles,TestImports", "./...")
	cmd.Dir = testenv.Repo()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, stderr.String())
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var p pkg
		require.NoError(t, dec.Decode(&p))
		pkgs = append(pkgs, p)
	}
	return pkgs
}

func under(path string, roots []string) bool {
	return slices.ContainsFunc(roots, func(r string) bool { return path == r || strings.HasPrefix(path, r+"/") })
}

func TestPackagesNeverImportOneAnother(t *testing.T) {
	for _, p := range list(t) {
		top, _, _ := strings.Cut(p.rel(), "/")
		if !slices.Contains(packages, top) {
			continue
		}
		for _, d := range p.Deps {
			other, _, _ := strings.Cut(strings.TrimPrefix(d, module+"/"), "/")
			if strings.HasPrefix(d, module+"/") && slices.Contains(packages, other) {
				assert.Equal(t, top, other, "%s links %s: packages meet in the application", p.rel(), d)
			}
		}
	}
}

func TestDependencyRules(t *testing.T) {
	pkgs := list(t)
	for _, r := range rules {
		for _, p := range pkgs {
			if !under(p.rel(), r.from) || under(p.rel(), r.except) {
				continue
			}
			for _, d := range p.Deps {
				if forTests(p.rel()) && r.reason == testReason {
					continue
				}
				assert.False(t, under(d, r.deny), "%s links %s: %s", p.rel(), d, r.reason)
			}
		}
	}
}

func TestLibrariesUseNoGlobalLogAndNoCgo(t *testing.T) {
	for _, p := range list(t) {
		assert.Empty(t, p.CgoFiles, p.rel())
		if top, _, _ := strings.Cut(p.rel(), "/"); slices.Contains(packages, top) && p.Name != "main" {
			for _, i := range p.Imports {
				assert.False(t, i == "log" || i == "flag", "%s imports %q: a library takes a *slog.Logger and a struct", p.rel(), i)
			}
		}
	}
}

func TestExamplesImportNoInternalPackage(t *testing.T) {
	// Examples are what vendors copy. demo starts test TPMs, softtpm serves
	// one, and compliance prints the project's own table.
	exempt := []string{"examples/demo", "examples/softtpm", "examples/compliance"}
	for _, p := range list(t) {
		if !under(p.rel(), []string{"examples"}) || under(p.rel(), exempt) {
			continue
		}
		for _, i := range p.Imports {
			assert.False(t, strings.HasPrefix(i, module+"/internal/"), "%s imports %s", p.rel(), i)
		}
	}
}

func TestOnlyTheHousesDirectories(t *testing.T) {
	allowed := append([]string{"examples", "internal"}, packages...)
	for _, p := range list(t) {
		if top, _, _ := strings.Cut(p.rel(), "/"); top != "" {
			assert.Contains(t, allowed, top, "no other top-level Go directory")
		}
	}
}
