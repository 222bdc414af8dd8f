package testenv

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// FIPSOnly runs tests of the calling package's test binary again, in a process
// with GODEBUG=fips140=only, in which Go refuses every algorithm outside its
// FIPS 140-3 module. Each of the named tests must run there and pass.
func FIPSOnly(t *testing.T, names ...string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.v", "-test.run=^("+strings.Join(names, "|")+")$")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=only")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("with GODEBUG=fips140=only: %v\n%s", err, out)
	}
	for _, name := range names {
		if !strings.Contains(string(out), "\n--- PASS: "+name+" ") {
			t.Errorf("%s did not run with GODEBUG=fips140=only, or was skipped", name)
		}
	}
}
