package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/internal/city"
	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/secureboot/bootpolicy"
)

var updateDocs = flag.Bool("update", false, "write the table of the docs anew")

// thief collects what a thief got, for the docs.
type thief struct {
	t    *testing.T
	rows []string
}

func (th *thief) row(has, tries, result string) {
	th.rows = append(th.rows, fmt.Sprintf("| %s | %s | %s |", has, tries, result))
}

const canary = "canary-of-the-citizens"

// TestThief plays what a thief of one node can do, with its disk, with its TPM,
// and with the whole node, before and after the owner notices. It prints the
// table that docs/stolen-node.md shows.
func TestThief(t *testing.T) {
	ctx := t.Context()
	th := &thief{t: t}
	two := []city.Tenant{{Name: "lighting", Stream: "lamp"}, {Name: "environment", Stream: "no2"}}
	c, err := city.Found(ctx, city.Config{Dir: t.TempDir(), Bin: build(t), Tenants: two})
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			keepLogs(t, c)
		}
		assert.NoError(t, c.Close())
	})
	must(t, c.StartCloud(ctx, 0))
	must(t, c.CreateTenants(ctx))
	n, err := c.NewNode(ctx, "node", func(cfg map[string]any) {
		for _, s := range cfg["streams"].([]map[string]any) {
			s["every_seconds"] = 0
		}
	})
	must(t, err)
	other, err := c.NewNode(ctx, "other", nil)
	must(t, err)
	must(t, c.Owner.Assign(ctx, n.Device, other.Device))
	must(t, errors.Join(n.Run(), other.Run()))
	for _, node := range []*city.Node{n, other} {
		for _, l := range city.Links {
			_, err := node.Proc.Await(ctx, 0, 60*time.Second, "event", "link.proven", "link", l)
			must(t, err)
		}
	}
	leave(t, n, 1)
	require.Eventually(t, func() bool { return spooled(t, n) == 0 }, 30*time.Second, 50*time.Millisecond)

	// The network goes; what is left at the node stays in its spool.
	must(t, c.Clouds[0].Proc.Stop())
	leave(t, n, 2)
	require.NotZero(t, spooled(t, n))
	must(t, n.Proc.Stop())
	policies := approved(t, c, n)

	// (a) The disk alone, in another machine.
	assert.False(t, clear(t, n.Dir), "the disk holds clear text")
	stranger, err := c.Maker.NewTPM()
	must(t, err)
	must(t, n.PowerWith(ctx, stranger, city.GoodBoot))
	for _, volume := range []string{"system", "data"} {
		_, err := fscrypt.Open(ctx, n.Path("state", volume), fscrypt.Config{}, guard(volume, &fscrypt.TPM{Device: stranger, Policies: policies}))
		require.Error(t, err)
		if volume == "system" { // data asks the cloud first, which a thief can't reach as this node
			assert.ErrorIs(t, err, fscrypt.ErrTPMChanged)
		}
	}
	th.row("the disk", "to read it; to open it with another TPM in the right boot state", "ciphertext; `system` and `data` stay closed: not the TPM that they were sealed to")

	// The disk with its TPM, in a boot state that nobody approved.
	must(t, n.Power(ctx, city.TamperedBoot))
	for _, volume := range []string{"system", "data"} {
		_, err := fscrypt.Open(ctx, n.Path("state", volume), fscrypt.Config{}, guard(volume, &fscrypt.TPM{Device: n.TPM, Policies: policies}))
		require.Error(t, err)
		if volume == "system" {
			assert.ErrorIs(t, err, fscrypt.ErrPolicy)
		}
	}
	th.row("the disk and its TPM", "to boot something else", "ciphertext; `system` and `data` stay closed: the boot state is not approved")

	// (b) The complete node, powered on with the network cut.
	must(t, n.Power(ctx, city.GoodBoot))
	must(t, n.Run())
	_, err = n.Proc.Await(ctx, 0, 60*time.Second, "event", "link.proven", "link", "system volume")
	must(t, err)
	_, err = n.Proc.Await(ctx, 0, 60*time.Second, "event", "link.lost", "link", "data volume")
	must(t, err)
	assert.Empty(t, n.Proc.Records(0, "event", "link.proven", "link", "data volume"))
	assert.False(t, clear(t, n.Dir), "the spool is readable")
	th.row("the complete node, no network", "to power it on", "`system` opens: this node's configuration. `data` stays closed without the cloud's share; the spool is encrypted to the cloud, and the node has no key for it")
	must(t, n.Proc.Stop())

	// (c) The complete node, powered on before it is revoked.
	must(t, c.StartCloud(ctx, 0))
	must(t, n.Power(ctx, city.GoodBoot))
	must(t, n.Start(ctx, city.Links...))
	th.row("the complete node, powered on in reach of the cloud, before it is revoked", "nothing yet", "what the node itself has: `system` and `data` open inside the running software that was attested, and records of its own streams may be added, by who defeats that software")
	asNode(t, c, n, th)
	before := time.Now()
	mark := n.Proc.Mark()
	_, err = c.Owner.Call(ctx, 0, http.MethodPost, "/v1/admin/nodes/"+n.Device+"/revoke", nil)
	must(t, err)
	_, err = n.Proc.Await(ctx, mark, 10*time.Second, "event", "link.lost", "link", "tunnel")
	must(t, err)
	tunnel := time.Since(before)
	_, err = n.Proc.Await(ctx, mark, 10*time.Second, "event", "link.lost", "link", "data volume")
	must(t, err)
	data := time.Since(before)
	assert.Less(t, max(tunnel, data), 5*time.Second, "a bar of a second, on a machine that may be busy")
	t.Logf("after the revocation: tunnel gone in %d ms, data volume locked in %d ms", tunnel.Milliseconds(), data.Milliseconds())
	th.row("the complete node, in the moment of its revocation", "to go on", "the tunnel is cut and `data` locks, within a second; where the thief cut the network first, `data` locks when its lease ends (15 minutes unless configured otherwise)")

	// After it: started again, by itself and after a power cycle.
	must(t, n.Proc.Stop())
	must(t, n.Power(ctx, city.GoodBoot))
	must(t, n.Run())
	_, err = n.Proc.Await(ctx, 0, 60*time.Second, "event", "link.lost", "link", "tunnel")
	must(t, err)
	time.Sleep(2 * time.Second)
	for _, l := range []string{"attested", "data volume"} {
		assert.Empty(t, n.Proc.Records(0, "event", "link.proven", "link", l), l)
	}
	th.row("the complete node, after its revocation", "to power it on again; to enrol again with its certificate or its used token", "as without network: no tunnel, no share, no certificate")
	enrolAgain(t, c, n)

	// The other node noticed nothing, and the repaired one must enrol anew.
	require.Eventually(t, func() bool { return spooled(t, other) == 0 }, 30*time.Second, 20*time.Millisecond, "its telemetry flows")
	_, err = c.Owner.Call(ctx, 0, http.MethodPost, "/v1/admin/nodes/"+n.Device+"/release", nil)
	must(t, err)
	must(t, n.Renew(ctx))
	must(t, n.Power(ctx, city.GoodBoot))
	must(t, n.Start(ctx, "identity", "attested"))
	th.row("the repaired node, given back", "to work again", "only after the owner releases it, with a new enrolment token, and by enrolling as if it were new")
	th.compare()
}

// guard is what a volume is opened by: data also needs the cloud, which a thief
// with the disk does not have.
func guard(volume string, tpm *fscrypt.TPM) fscrypt.Protector {
	if volume == "system" {
		return tpm
	}
	return fscrypt.All(tpm, &fscrypt.Remote{
		Service:  "spiffe://" + city.Domain + "/gateway",
		Exchange: func(context.Context, []byte) ([]byte, error) { return nil, errors.New("the network is down") },
	})
}

// leave puts a record with the canary into the node's spool.
func leave(t *testing.T, n *city.Node, seq uint64) {
	var s *city.Sensor
	require.Eventually(t, func() (ok bool) {
		var err error
		s, err = n.Sensor()
		return err == nil
	}, 10*time.Second, 50*time.Millisecond)
	defer s.Close()
	must(t, s.Leave("lamp", seq, map[string]any{"seen": canary}))
}

func spooled(t *testing.T, n *city.Node) int {
	files, err := filepath.Glob(n.Path("state", "spool", "*", "*.age"))
	must(t, err)
	return len(files)
}

// clear reports whether any file below dir holds the canary, or an age
// identity, in clear.
func clear(t *testing.T, dir string) bool {
	found := false
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the daemon replaces files meanwhile
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if bytes.Contains(data, []byte(canary)) || bytes.Contains(data, []byte("AGE-SECRET-KEY")) || bytes.Contains(data, []byte("PRIVATE KEY")) {
			t.Errorf("%s holds clear text", path)
			found = true
		}
		return err
	}))
	return found
}

// approved reads the signed boot policies, which lie in clear on the disk.
func approved(t *testing.T, c *city.City, n *city.Node) []fscrypt.BootPolicy {
	key, err := city.LoadKey(filepath.Join(c.Clouds[0].State, "policy.key"))
	must(t, err)
	names, err := filepath.Glob(n.Path("policies", "*.json"))
	must(t, err)
	var out []fscrypt.BootPolicy
	for _, name := range names {
		signed, err := os.ReadFile(name)
		must(t, err)
		p, err := bootpolicy.Signed(key.Public(), signed)
		must(t, err)
		out = append(out, p)
	}
	return out
}

// asNode uses the node's TLS key, in its TPM, against everything but the
// tunnel: the identity of a node opens nothing else.
func asNode(t *testing.T, c *city.City, n *city.Node, th *thief) {
	ctx := t.Context()
	node, err := attest.Open(ctx, n.TPM, attest.NodeConfig{Endorsers: attest.Endorsers{Anchors: append([]*x509.Certificate{c.Maker.Root}, c.Maker.Intermediates...)}})
	must(t, err)
	cert, err := node.Certificate(ctx)
	must(t, err)
	roots := x509.NewCertPool()
	ca, err := os.ReadFile(filepath.Join(c.Clouds[0].State, "ca.crt"))
	must(t, err)
	roots.AppendCertsFromPEM(ca)
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}}}
	for _, path := range []string{"/", "/v1/admin/fleet", "/v1/admin/tenants", "/v1/records?stream=lamp", "/v1/records?stream=no2", "/v1/audit", "/metrics", "/live"} {
		rsp, err := client.Get("https://" + c.Clouds[0].API + path)
		must(t, err)
		body, err := io.ReadAll(io.LimitReader(rsp.Body, 1<<20))
		must(t, err)
		must(t, rsp.Body.Close())
		assert.Equal(t, http.StatusForbidden, rsp.StatusCode, "%s: %s", path, body)
		assert.NotContains(t, string(body), canary)
	}
	th.row("the same", "the operators' and tenants' API with the node's certificate", "every request is denied; a node's role is to add to its own streams, not to read, not even what it sent")
}

// enrolAgain tries the used token with another TPM.
func enrolAgain(t *testing.T, c *city.City, n *city.Node) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	must(t, n.Proc.Stop())
	stranger, err := c.Maker.NewTPM()
	must(t, err)
	must(t, n.PowerWith(ctx, stranger, city.GoodBoot))
	must(t, os.Rename(n.Path("state", "ek-name"), n.Path("ek-name")))
	mark := c.Clouds[0].Proc.Mark()
	must(t, n.Run())
	rec, err := c.Clouds[0].Proc.Await(ctx, mark, 40*time.Second, "event", "enroll.refused")
	must(t, err)
	assert.Contains(t, rec.Str("reason"), "token")
	must(t, n.Proc.Stop())
	must(t, os.Rename(n.Path("ek-name"), n.Path("state", "ek-name")))
}

// compare holds the table against the one in the docs.
func (th *thief) compare() {
	t := th.t
	table := "| the thief has | and tries | what happens |\n|---|---|---|\n" + strings.Join(th.rows, "\n") + "\n"
	t.Log("\n" + table)
	name := filepath.Join(testenv.Repo(), "docs", "stolen-node.md")
	const head = "<!-- written by: go test ./internal/e2e -run TestThief -update -->\n"
	doc, err := os.ReadFile(name)
	must(t, err)
	before, rest, ok := bytes.Cut(doc, []byte(head))
	require.True(t, ok, name)
	_, after, ok := bytes.Cut(rest, []byte("\n\n"))
	require.True(t, ok, name)
	if *updateDocs {
		must(t, os.WriteFile(name, []byte(string(before)+head+table+"\n"+string(after)), 0o644))
		return
	}
	assert.Equal(t, string(before)+head+table+"\n"+string(after), string(doc), "the docs show another table: run with -update")
}
