package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
)

// The conformance tests of this package drive the command as a process against
// a repository that is simulated here from the TUF specification alone: none
// of this module's code makes or reads its metadata.

const asCommand = "TRUSTTREE_TEST_TUFCLIENT"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) == "1" {
		main()
		os.Exit(0)
	}
	if _, err := exec.LookPath("date"); err != nil { // the protocol's clock
		fmt.Println("skipped: there is no date (apt-get install coreutils)")
		if testenv.CI() {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type obj = map[string]any

// key is a signing key in TUF's form.
type key struct {
	crypto.Signer
	id  string
	pub obj
}

func canonical(v any) []byte {
	switch v := v.(type) {
	case obj:
		var out [][]byte
		for _, k := range slices.Sorted(maps.Keys(v)) {
			out = append(out, slices.Concat(canonical(k), []byte(":"), canonical(v[k])))
		}
		return slices.Concat([]byte("{"), bytes.Join(out, []byte(",")), []byte("}"))
	case []any:
		var out [][]byte
		for _, e := range v {
			out = append(out, canonical(e))
		}
		return slices.Concat([]byte("["), bytes.Join(out, []byte(",")), []byte("]"))
	case string:
		return []byte(`"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v) + `"`)
	}
	return fmt.Append(nil, v)
}

func newKeyOf(t *testing.T, s crypto.Signer, typ, scheme string, more obj) *key {
	pub := ""
	if p, ok := s.Public().(ed25519.PublicKey); ok {
		pub = hex.EncodeToString(p)
	} else {
		der, err := x509.MarshalPKIXPublicKey(s.Public())
		require.NoError(t, err)
		pub = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	k := &key{Signer: s, pub: obj{"keytype": typ, "scheme": scheme, "keyval": obj{"public": pub}}}
	maps.Copy(k.pub, more)
	k.id = fmt.Sprintf("%x", sha256.Sum256(canonical(k.pub)))
	return k
}

func newKey(t *testing.T, scheme string, more obj) *key {
	switch scheme {
	case "rsassa-pss-sha256":
		s, err := rsa.GenerateKey(rand.Reader, 2048)
		require.NoError(t, err)
		return newKeyOf(t, s, "rsa", scheme, more)
	case "ed25519":
		_, s, err := ed25519.GenerateKey(nil)
		require.NoError(t, err)
		return newKeyOf(t, s, scheme, scheme, more)
	case "ecdsa-sha2-nistp384":
		s, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		require.NoError(t, err)
		return newKeyOf(t, s, "ecdsa", scheme, more)
	}
	s, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return newKeyOf(t, s, "ecdsa", "ecdsa-sha2-nistp256", more)
}

func (k *key) sign(t *testing.T, payload []byte) string {
	sum := sha256.Sum256(payload)
	digest, opts := sum[:], crypto.SignerOpts(crypto.SHA256)
	switch k.pub["scheme"] {
	case "ed25519":
		digest, opts = payload, crypto.Hash(0)
	case "rsassa-pss-sha256":
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	case "ecdsa-sha2-nistp384":
		s := sha512.Sum384(payload)
		digest, opts = s[:], crypto.SHA384
	}
	sig, err := k.Sign(rand.Reader, digest, opts)
	require.NoError(t, err)
	return hex.EncodeToString(sig)
}

type artifact struct {
	data   []byte
	hashes obj
}

// sim is a repository whose every part can be made wrong. Files are visible to
// clients once they are published.
type sim struct {
	t         *testing.T
	url       string
	mds       map[string]obj // signed parts by role
	signers   map[string][]*key
	published map[string][][]byte // versions of each role's file
	artifacts map[string]*artifact
	hashes    bool // state lengths and hashes of metadata files

	mu      sync.Mutex
	asked   []string // metadata files as requested, without ".json"
	fetched []string // artifacts as requested
	serve   http.HandlerFunc
}

var topRoles = []string{"root", "timestamp", "snapshot", "targets"}

func expiry(days int) string { return time.Now().UTC().AddDate(0, 0, days).Format(time.RFC3339) }

func signedPart(typ string, more obj) obj {
	o := obj{"_type": typ, "spec_version": "1.0.31", "version": 1, "expires": expiry(30)}
	maps.Copy(o, more)
	return o
}

func newSim(t *testing.T) *sim {
	s := &sim{t: t, mds: map[string]obj{}, signers: map[string][]*key{}, published: map[string][][]byte{}, artifacts: map[string]*artifact{}}
	roles := obj{}
	for _, r := range topRoles {
		roles[r] = obj{"keyids": []any{}, "threshold": 1}
	}
	s.mds["root"] = signedPart("root", obj{"consistent_snapshot": true, "keys": obj{}, "roles": roles})
	s.mds["timestamp"] = signedPart("timestamp", obj{"meta": obj{}})
	s.mds["snapshot"] = signedPart("snapshot", obj{"meta": obj{}})
	s.mds["targets"] = signedPart("targets", obj{"targets": obj{}})
	for _, r := range topRoles {
		s.addKey(r, newKey(t, "", nil))
	}
	s.publish("targets", "snapshot", "timestamp", "root")
	srv := httptest.NewServer(http.HandlerFunc(s.handle))
	t.Cleanup(srv.Close)
	// The suite names a repository after its test, with all that is odd in it.
	s.url = srv.URL + "/" + url.PathEscape(t.Name())
	return s
}

func (s *sim) role(name string) obj { return s.mds["root"]["roles"].(obj)[name].(obj) }

func (s *sim) addKey(role string, k *key) {
	s.mds["root"]["keys"].(obj)[k.id] = k.pub
	r := s.role(role)
	r["keyids"] = append(r["keyids"].([]any), k.id)
	s.signers[role] = append(s.signers[role], k)
}

func (s *sim) rotate(role string) {
	s.role(role)["keyids"], s.signers[role] = []any{}, nil
	for range s.role(role)["threshold"].(int) {
		s.addKey(role, newKey(s.t, "", nil))
	}
}

func (s *sim) envelope(role string) []byte {
	payload, sigs := canonical(s.mds[role]), []any{}
	for _, k := range s.signers[role] {
		sigs = append(sigs, obj{"keyid": k.id, "sig": k.sign(s.t, payload)})
	}
	data, err := json.MarshalIndent(obj{"signatures": sigs, "signed": s.mds[role]}, "", " ")
	require.NoError(s.t, err)
	return data
}

// publish signs the next version of each role and makes it visible.
func (s *sim) publish(roles ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, role := range roles {
		if len(s.published[role]) > 0 {
			s.mds[role]["version"] = s.mds[role]["version"].(int) + 1
		}
		data := s.envelope(role)
		s.published[role] = append(s.published[role], data)
		meta := obj{"version": s.mds[role]["version"]}
		if s.hashes {
			meta["length"], meta["hashes"] = len(data), obj{"sha256": fmt.Sprintf("%x", sha256.Sum256(data))}
		}
		switch role {
		case "root", "timestamp":
		case "snapshot":
			s.mds["timestamp"]["meta"] = obj{"snapshot.json": meta}
		default:
			s.mds["snapshot"]["meta"].(obj)[role+".json"] = meta
		}
	}
}

// change edits the newest published file of a role.
func (s *sim) change(role string, f func(file obj)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.published[role]) - 1
	var file obj
	require.NoError(s.t, json.Unmarshal(s.published[role][n], &file))
	f(file)
	data, err := json.Marshal(file)
	require.NoError(s.t, err)
	s.published[role][n] = data
}

// delegation describes one delegation; without a key in signers it gets one.
type delegation struct {
	from, name  string
	paths       []any
	prefixes    []any
	terminating bool
}

// delegate adds a delegation with a new key that signs the role.
func (s *sim) delegate(d delegation) {
	k := newKey(s.t, "", nil)
	ds, ok := s.mds[d.from]["delegations"].(obj)
	if !ok {
		ds = obj{"keys": obj{}, "roles": []any{}}
		s.mds[d.from]["delegations"] = ds
	}
	role := obj{"name": d.name, "keyids": []any{k.id}, "threshold": 1, "terminating": d.terminating}
	if d.prefixes != nil {
		role["path_hash_prefixes"] = d.prefixes
	} else if role["paths"] = d.paths; d.paths == nil {
		role["paths"] = []any{"*"}
	}
	ds["keys"].(obj)[k.id] = k.pub
	ds["roles"] = append(ds["roles"].([]any), role)
	s.signers[d.name] = append(s.signers[d.name], k)
	if s.mds[d.name] == nil {
		s.mds[d.name] = signedPart("targets", obj{"targets": obj{}})
	}
}

func (s *sim) addTarget(role, path string, data []byte, algorithms ...string) {
	a := &artifact{data: data, hashes: obj{}}
	if len(algorithms) == 0 {
		algorithms = []string{"sha256"}
	}
	for _, alg := range algorithms {
		if alg == "sha512" {
			a.hashes[alg] = fmt.Sprintf("%x", sha512.Sum512(data))
		} else {
			a.hashes[alg] = fmt.Sprintf("%x", sha256.Sum256(data))
		}
	}
	s.artifacts[path] = a
	s.mds[role]["targets"].(obj)[path] = obj{"length": len(data), "hashes": a.hashes}
}

// handle serves requests as they were written, not as a server would clean them.
func (s *sim) handle(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	raw, ok := strings.CutPrefix(r.RequestURI, "/"+url.PathEscape(s.t.Name())+"/")
	if !ok {
		http.NotFound(w, r)
		return
	}
	if file, ok := strings.CutPrefix(raw, "metadata/"); ok {
		s.metadata(w, strings.TrimSuffix(file, ".json"))
		return
	}
	path, err := url.PathUnescape(strings.TrimPrefix(raw, "targets/"))
	require.NoError(s.t, err)
	s.fetched = append(s.fetched, path)
	if s.serve != nil {
		s.serve(w, r)
		return
	}
	prefix := ""
	if s.mds["root"]["consistent_snapshot"] == true {
		dir, base := "", path
		if i := strings.LastIndex(path, "/"); i >= 0 {
			dir, base = path[:i+1], path[i+1:]
		}
		prefix, base, _ = strings.Cut(base, ".")
		path = dir + base
	}
	a := s.artifacts[path]
	if a == nil || prefix != "" && !slices.Contains(slices.Collect(maps.Values(a.hashes)), any(prefix)) {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(a.data))
}

func (s *sim) metadata(w http.ResponseWriter, file string) {
	s.asked = append(s.asked, file)
	version, role := -1, file
	if v, rest, ok := strings.Cut(file, "."); ok && (rest == "root" || s.mds["root"]["consistent_snapshot"] == true) {
		n, err := strconv.Atoi(v)
		if err != nil {
			http.Error(w, "no version", http.StatusNotFound)
			return
		}
		version, role = n, rest
	}
	role, err := url.PathUnescape(role)
	require.NoError(s.t, err)
	files := s.published[role]
	if len(files) == 0 {
		panic(http.ErrAbortHandler) // the suite's server dies on roles it does not have
	}
	n := cmp.Or(version, 0) - 1
	if version < 0 {
		n = len(files) - 1
	}
	if n < 0 || n >= len(files) {
		http.Error(w, "no such version", http.StatusNotFound)
		return
	}
	_, _ = w.Write(files[n]) // a client that goes away is not this test's
}

// settle orders what the test does with what the server did: the command
// between them is another process.
func (s *sim) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
}

func (s *sim) reset() { s.asked, s.fetched = nil, nil }

// cli is the command with its two directories.
type cli struct {
	t          *testing.T
	sim        *sim
	dir, files string
	root       []byte
	path       string // PATH of the command, when not the test's
}

func newClient(t *testing.T, s *sim) *cli {
	tmp := t.TempDir()
	c := &cli{t: t, sim: s, dir: filepath.Join(tmp, "metadata"), files: filepath.Join(tmp, "targets"), root: s.published["root"][0]}
	require.NoError(t, os.Mkdir(c.dir, 0o700))
	require.NoError(t, os.Mkdir(c.files, 0o700))
	return c
}

func (c *cli) command(args ...string) *exec.Cmd {
	c.sim.settle()
	cmd := exec.CommandContext(context.Background(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), asCommand+"=1")
	if c.path != "" {
		cmd.Env = append(cmd.Env, "PATH="+c.path)
	}
	return cmd
}

func (c *cli) run(args ...string) int {
	c.t.Helper()
	out, err := c.command(args...).CombinedOutput()
	c.sim.settle()
	if err == nil {
		return 0
	}
	c.t.Logf("%s", out)
	exit := new(exec.ExitError)
	require.ErrorAs(c.t, err, &exit)
	require.NotContains(c.t, string(out), "panic")
	return exit.ExitCode()
}

func (c *cli) init() int {
	c.t.Helper()
	file := filepath.Join(filepath.Dir(c.dir), "initial_root.json")
	require.NoError(c.t, os.WriteFile(file, c.root, 0o600))
	return c.run("--metadata-dir", c.dir, "init", file)
}

func (c *cli) refresh() int {
	c.t.Helper()
	return c.run("--metadata-url", c.sim.url+"/metadata/", "--metadata-dir", c.dir, "refresh")
}

func (c *cli) downloadArgs(names ...string) []string {
	args := []string{"--metadata-url", c.sim.url + "/metadata/", "--metadata-dir", c.dir}
	for _, n := range names {
		args = append(args, "--target-name", n)
	}
	return append(args, "--target-dir", c.files, "--target-base-url", c.sim.url+"/targets/", "download")
}

func (c *cli) download(names ...string) int {
	c.t.Helper()
	return c.run(c.downloadArgs(names...)...)
}

// at makes the command date say that some days have passed.
func (c *cli) at(days int) *cli {
	bin := c.t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\n[ \"$*\" = +%%s ] && echo %d\n", time.Now().AddDate(0, 0, days).Unix())
	require.NoError(c.t, os.WriteFile(filepath.Join(bin, "date"), []byte(script), 0o700))
	later := *c
	later.path = bin + ":" + os.Getenv("PATH")
	return &later
}

// version is the version of a trusted role, 0 where there is none.
func (c *cli) version(role string) int {
	data, err := os.ReadFile(filepath.Join(c.dir, role+".json"))
	if os.IsNotExist(err) {
		return 0
	}
	require.NoError(c.t, err)
	var f struct{ Signed struct{ Version int } }
	require.NoError(c.t, json.Unmarshal(data, &f))
	return f.Signed.Version
}

// trusted lists every D/*.json as "role version".
func (c *cli) trusted() []string {
	files, err := filepath.Glob(filepath.Join(c.dir, "*.json"))
	require.NoError(c.t, err)
	out := []string{}
	for _, f := range files {
		role := strings.TrimSuffix(filepath.Base(f), ".json")
		out = append(out, fmt.Sprintf("%s %d", role, c.version(role)))
	}
	return out
}

// artifacts are the contents in the target directory, in order of modification.
func (c *cli) artifacts() []string {
	type file struct {
		at   time.Time
		data string
	}
	var files []file
	require.NoError(c.t, filepath.Walk(c.files, func(path string, fi os.FileInfo, err error) error {
		if err != nil || !fi.Mode().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		files = append(files, file{fi.ModTime(), string(data)})
		return err
	}))
	slices.SortFunc(files, func(a, b file) int { return a.at.Compare(b.at) })
	out := []string{}
	for _, f := range files {
		out = append(out, f.data)
	}
	return out
}
