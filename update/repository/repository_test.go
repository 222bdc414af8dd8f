package repository_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"

	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/manifest"
	"github.com/trusttree/trusttree/update/repository"
)

func key(t testing.TB) crypto.Signer {
	_, k, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	return k
}

func role(threshold int, keys ...crypto.Signer) repository.Role {
	r := repository.Role{Threshold: threshold}
	for _, k := range keys {
		r.Keys = append(r.Keys, k.Public())
	}
	return r
}

// office is a repository with two root keys, an offline targets key and an
// online key.
type office struct {
	r1, r2, targets, online crypto.Signer
	dir                     string
	store                   repository.Store
	repo                    *repository.Repository
	now                     time.Time
}

func newOffice(t testing.TB, bins int) *office {
	t.Helper()
	o := &office{r1: key(t), r2: key(t), targets: key(t), online: key(t), dir: t.TempDir(), now: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
	o.store = repository.DirStore(o.dir)
	cfg := repository.Config{Root: role(2, o.r1, o.r2), Targets: role(1, o.targets), Snapshot: role(1, o.online), Timestamp: role(1, o.online),
		Bins: bins, Now: func() time.Time { return o.now }}
	if bins > 0 {
		cfg.Bin = role(1, o.online)
	}
	var err error
	o.repo, err = repository.Create(t.Context(), o.store, cfg, o.r1, o.r2, o.targets, o.online)
	require.NoError(t, err)
	return o
}

func (o *office) open(t testing.TB) *repository.Repository {
	t.Helper()
	r, err := repository.Open(t.Context(), o.store, func() time.Time { return o.now })
	require.NoError(t, err)
	return r
}

func add(name, content string) func(*repository.Tx) error {
	return func(tx *repository.Tx) error { return tx.AddTarget(name, strings.NewReader(content), nil) }
}

// look reads a target as a node does that trusts the first root.
func (o *office) look(t testing.TB, fsys fs.FS, name string) (string, error) {
	t.Helper()
	root, err := fs.ReadFile(fsys, "metadata/1.root.json")
	require.NoError(t, err)
	c, err := update.NewClient(update.ClientConfig{Root: root, Dir: t.TempDir(), Images: update.FSSource(fsys),
		Floors: update.FileFloors(t.TempDir()), Now: func() time.Time { return o.now }})
	require.NoError(t, err)
	if _, err := c.Refresh(t.Context()); err != nil {
		return "", err
	}
	tgt, err := c.Target(t.Context(), name)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	err = c.Download(t.Context(), tgt, &b)
	return b.String(), err
}

func TestEditsAreAllOrNothing(t *testing.T) {
	o := newOffice(t, 0)
	require.NoError(t, o.repo.Edit(t.Context(), add("a", "one"), o.targets, o.online))
	before := tree(t, o.dir)
	for name, edit := range map[string]func() error{
		"no targets key":     func() error { return o.repo.Edit(t.Context(), add("b", "x"), o.online) },
		"no online key":      func() error { return o.repo.Edit(t.Context(), add("b", "x"), o.targets) },
		"stranger's key":     func() error { return o.repo.Edit(t.Context(), add("b", "x"), key(t), key(t)) },
		"one of two root":    func() error { return o.repo.Edit(t.Context(), rotate(o.online), o.r1, o.targets, o.online) },
		"function fails":     func() error { return o.repo.Edit(t.Context(), func(*repository.Tx) error { return errors.New("x") }) },
		"bad name":           func() error { return o.repo.Edit(t.Context(), add("../b", "x"), o.targets, o.online) },
		"content that fails": func() error { return o.repo.Edit(t.Context(), addReader("b", failing{}), o.targets, o.online) },
	} {
		t.Run(name, func(t *testing.T) {
			require.Error(t, edit())
			got := tree(t, o.dir)
			for n := range got {
				if strings.HasPrefix(n, "targets/") {
					continue // content that no metadata names
				}
				assert.Equal(t, before[n], got[n], n)
			}
			_, err := o.look(t, os.DirFS(o.dir), "b")
			require.ErrorIs(t, err, update.ErrNotInRepository)
		})
	}
}

func rotate(online crypto.Signer) func(*repository.Tx) error {
	return func(tx *repository.Tx) error { return tx.SetRole("timestamp", role(1, online)) }
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("disk on fire") }

func addReader(name string, r io.Reader) func(*repository.Tx) error {
	return func(tx *repository.Tx) error { return tx.AddTarget(name, r, nil) }
}

func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	require.NoError(t, fs.WalkDir(os.DirFS(dir), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(filepath.Join(dir, p))
		out[p] = string(data)
		return err
	}))
	return out
}

// cutStore loses power before the nth Put.
type cutStore struct {
	repository.Store
	left int
}

var errCut = errors.New("power cut")

func (s *cutStore) Put(ctx context.Context, name string, r io.Reader, replace bool) error {
	if s.left--; s.left < 0 {
		return errCut
	}
	return s.Store.Put(ctx, name, r, replace)
}

func TestPublisherIsCutOffAtEveryWrite(t *testing.T) {
	for n := 0; ; n++ {
		o := newOffice(t, 0)
		require.NoError(t, o.repo.Edit(t.Context(), add("a", "one"), o.targets, o.online))
		newTargets, newOnline := key(t), key(t)
		cut := &cutStore{o.store, n}
		r, err := repository.Open(t.Context(), cut, func() time.Time { return o.now })
		require.NoError(t, err)
		err = r.Edit(t.Context(), func(tx *repository.Tx) error {
			if err := tx.SetRole("targets", role(1, newTargets)); err != nil {
				return err
			}
			if err := tx.SetRole("timestamp", role(1, newOnline)); err != nil {
				return err
			}
			return add("b", "two")(tx)
		}, o.r1, o.r2, newTargets, newOnline, o.online)
		if err == nil {
			require.Greater(t, n, 4)
			got, err := o.look(t, os.DirFS(o.dir), "b")
			require.NoError(t, err)
			assert.Equal(t, "two", got)
			return
		}
		require.ErrorIs(t, err, errCut)
		root, err := filepath.Glob(filepath.Join(o.dir, "metadata", "2.root.json"))
		require.NoError(t, err)
		if len(root) == 0 { // nothing to be seen yet
			got, err := o.look(t, os.DirFS(o.dir), "a")
			require.NoError(t, err)
			assert.Equal(t, "one", got)
			_, err = o.look(t, os.DirFS(o.dir), "b")
			require.ErrorIs(t, err, update.ErrNotInRepository)
		}
		o.repo = o.open(t)
		require.NoError(t, o.repo.Edit(t.Context(), func(tx *repository.Tx) error {
			if err := tx.SetRole("targets", role(1, newTargets)); err != nil {
				return err
			}
			if err := tx.SetRole("timestamp", role(1, newOnline)); err != nil {
				return err
			}
			return add("b", "two")(tx)
		}, o.r1, o.r2, newTargets, newOnline, o.online), "cut before write %d", n)
		got, err := o.look(t, os.DirFS(o.dir), "b")
		require.NoError(t, err, "cut before write %d", n)
		assert.Equal(t, "two", got)
	}
}

func TestOfflineCeremony(t *testing.T) {
	o := newOffice(t, 0)
	_, err := o.repo.Draft(t.Context())
	require.ErrorIs(t, err, repository.ErrNoDraft)
	r3 := key(t)
	require.NoError(t, o.repo.Propose(t.Context(), func(tx *repository.Tx) error {
		if err := tx.SetRole("root", role(2, o.r1, r3)); err != nil { // r2 is lost to a competitor
			return err
		}
		return add("a", "one")(tx)
	}))
	_, err = o.look(t, os.DirFS(o.dir), "a")
	require.ErrorIs(t, err, update.ErrNotInRepository)

	repo := o.open(t) // another day
	require.ErrorIs(t, repo.PublishDraft(t.Context(), o.online), repository.ErrThreshold)
	require.ErrorIs(t, repo.PublishDraft(t.Context(), o.online, o.targets, o.r1, o.r2, r3), repository.ErrThreshold,
		"what is in a draft is signed by AddSignature only")
	sign := func(roleName string, k crypto.Signer) error {
		payload, err := repo.Payload(t.Context(), roleName)
		require.NoError(t, err)
		sig, err := k.Sign(nil, payload, crypto.Hash(0)) // on the air-gapped machine
		require.NoError(t, err)
		return repo.AddSignature(t.Context(), roleName, k.Public(), sig)
	}
	require.NoError(t, sign("targets", o.targets))
	require.ErrorContains(t, sign("targets", o.online), "does not sign role")
	require.NoError(t, sign("root", o.r1))
	require.NoError(t, sign("root", r3))
	require.ErrorContains(t, repo.AddSignature(t.Context(), "root", o.r2.Public(), []byte("junk")), "not over this draft")
	w, err := repo.Draft(t.Context())
	require.NoError(t, err)
	require.Len(t, w, 2)
	assert.Equal(t, "root", w[0].Role)
	assert.Len(t, w[0].Missing, 1)
	require.ErrorIs(t, repo.PublishDraft(t.Context(), o.online), repository.ErrThreshold, "the old root's threshold")
	require.NoError(t, sign("root", o.r2))
	require.NoError(t, repo.PublishDraft(t.Context(), o.online))
	got, err := o.look(t, os.DirFS(o.dir), "a")
	require.NoError(t, err)
	assert.Equal(t, "one", got)
	_, err = repo.Draft(t.Context())
	require.ErrorIs(t, err, repository.ErrNoDraft)

	require.NoError(t, repo.Propose(t.Context(), add("b", "x"), o.targets))
	require.NoError(t, repo.Refresh(t.Context(), o.online))
	require.ErrorIs(t, repo.PublishDraft(t.Context(), o.online), repository.ErrConflict, "the repository moved on")
}

func TestConcurrentEditsConflict(t *testing.T) {
	o := newOffice(t, 0)
	a, b := o.open(t), o.open(t)
	require.NoError(t, a.Edit(t.Context(), add("a", "1"), o.targets, o.online))
	require.ErrorIs(t, b.Edit(t.Context(), add("b", "1"), o.targets, o.online), repository.ErrConflict)
}

func TestTamperedStoreIsNotSigned(t *testing.T) {
	for _, name := range []string{"metadata/1.root.json", "metadata/timestamp.json", "metadata/1.snapshot.json", "metadata/1.targets.json"} {
		o := newOffice(t, 0)
		file := filepath.Join(o.dir, name)
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file, bytes.Replace(data, []byte(`"version":1`), []byte(`"version":7`), 1), 0o600))
		_, err = repository.Open(t.Context(), o.store, nil)
		require.ErrorIs(t, err, repository.ErrInvalid, name)
	}
}

func TestReleasesDoNotChange(t *testing.T) {
	o := newOffice(t, 0)
	rel := manifest.Release{Name: "os-1", Version: "1", Channel: "stable", Hardware: []string{"x"}}
	addRel := func(tx *repository.Tx) error {
		return tx.AddRelease(rel, repository.Content{Name: "rootfs", Reader: strings.NewReader("x")})
	}
	require.NoError(t, o.repo.Edit(t.Context(), addRel, o.targets, o.online))
	require.ErrorContains(t, o.repo.Edit(t.Context(), addRel, o.targets, o.online), "do not change")
	for name, bad := range map[string]func(*manifest.Release){
		"no hardware": func(r *manifest.Release) { r.Hardware = nil },
		"bad version": func(r *manifest.Release) { r.Version = "1.a" },
		"bad name":    func(r *manifest.Release) { r.Name = "../x" },
		"bad channel": func(r *manifest.Release) { r.Channel = "a/b" },
	} {
		r := rel
		r.Name = "os-2"
		bad(&r)
		require.Error(t, o.repo.Edit(t.Context(), func(tx *repository.Tx) error {
			return tx.AddRelease(r, repository.Content{Name: "rootfs", Reader: strings.NewReader("x")})
		}, o.targets, o.online), name)
	}
}

func TestRoleConfigsThatCannotWork(t *testing.T) {
	k := key(t)
	for name, r := range map[string]repository.Role{
		"no keys":           {},
		"threshold unsaid":  {Keys: []crypto.PublicKey{k.Public(), key(t).Public()}},
		"threshold too big": role(2, k), "negative": role(-1, k), "same key twice": role(2, k, k),
		"unknown key": {Keys: []crypto.PublicKey{"x"}},
	} {
		_, err := repository.Create(t.Context(), repository.DirStore(t.TempDir()), repository.Config{Root: r, Targets: role(1, k), Snapshot: role(1, k), Timestamp: role(1, k)}, k)
		require.Error(t, err, name)
	}
}

func TestDelegations(t *testing.T) {
	o := newOffice(t, 0)
	maker := key(t)
	d := repository.Delegation{Name: "maker", Role: role(1, maker), Paths: []string{"modules/*"}}
	require.NoError(t, o.repo.Edit(t.Context(), func(tx *repository.Tx) error {
		if err := tx.Delegate(d); err != nil {
			return err
		}
		return tx.AddDelegatedTarget("maker", "modules/camera", repository.Content{Reader: strings.NewReader("fw")})
	}, o.targets, o.online, maker))
	got, err := o.look(t, os.DirFS(o.dir), "modules/camera")
	require.NoError(t, err)
	assert.Equal(t, "fw", got)
	repo := o.open(t)
	require.NoError(t, repo.Edit(t.Context(), func(tx *repository.Tx) error {
		return tx.AddDelegatedTarget("maker", "modules/radio", repository.Content{Reader: strings.NewReader("r")})
	}, o.online, maker), "the maker needs no targets key")
	require.Error(t, repo.Edit(t.Context(), func(tx *repository.Tx) error {
		return tx.AddDelegatedTarget("maker", "rootfs", repository.Content{Reader: strings.NewReader("r")})
	}, o.online, maker))
	require.NoError(t, repo.Edit(t.Context(), func(tx *repository.Tx) error { return tx.RevokeDelegation("maker") }, o.targets, o.online))
	_, err = o.look(t, os.DirFS(o.dir), "modules/camera")
	require.ErrorIs(t, err, update.ErrNotInRepository)
	require.Error(t, repo.Edit(t.Context(), func(tx *repository.Tx) error {
		return tx.Delegate(repository.Delegation{Name: "root", Role: role(1, maker), Paths: []string{"*"}})
	}, o.targets, o.online))
}

func TestCheckFindsWhatWillGoWrong(t *testing.T) {
	o := newOffice(t, 2)
	require.NoError(t, o.repo.Edit(t.Context(), add("a", "one"), o.targets, o.online))
	problems := func() string {
		t.Helper()
		list, err := o.open(t).Check(t.Context())
		require.NoError(t, err)
		var s []string
		for _, p := range list {
			s = append(s, p.What+": "+p.Detail+" "+strconv.FormatBool(p.Urgent))
		}
		return strings.Join(s, "\n")
	}
	assert.Contains(t, problems(), "targets: needs all 1 of its keys")
	assert.NotContains(t, problems(), "expires")
	o.now = o.now.AddDate(0, 0, 6)
	assert.Contains(t, problems(), "timestamp: expires on 2026-11-08, in 24h0m0s")
	o.now = o.now.AddDate(0, 0, 2)
	assert.Contains(t, problems(), "timestamp: expired on 2026-11-08")
	content, err := filepath.Glob(filepath.Join(o.dir, "targets", "*.a"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(content[0], []byte("shrt"), 0o600))
	assert.Contains(t, problems(), "a: its content has 4 bytes, signed are 3 true")
	require.NoError(t, os.Remove(content[0]))
	assert.Contains(t, problems(), "a: its content is missing")
}

func TestExportIsARepository(t *testing.T) {
	o := newOffice(t, 3)
	require.NoError(t, o.repo.Edit(t.Context(), func(tx *repository.Tx) error {
		return errors.Join(add("a/1", "one")(tx), add("b/2", "two")(tx))
	}, o.online))
	var buf bytes.Buffer
	require.NoError(t, o.repo.Export(t.Context(), &buf, "a/"))
	stick := fstest.MapFS{}
	for tr := tar.NewReader(&buf); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		data, err := io.ReadAll(tr)
		require.NoError(t, err)
		stick[h.Name] = &fstest.MapFile{Data: data}
	}
	got, err := o.look(t, stick, "a/1")
	require.NoError(t, err)
	assert.Equal(t, "one", got)
	_, err = o.look(t, stick, "b/2")
	require.ErrorIs(t, err, update.ErrNotInRepository, "content was not exported")
}

// What we write is read by go-tuf's own client.
func TestGoTUFReadsWhatWeWrite(t *testing.T) {
	for name, bins := range map[string]int{"flat": 0, "bins": 4} {
		t.Run(name, func(t *testing.T) {
			o := newOffice(t, bins)
			o.now = time.Now()
			require.NoError(t, o.repo.Edit(t.Context(), add("dir/a", "content"), o.targets, o.online))
			require.NoError(t, o.repo.Edit(t.Context(), rotate(o.online), o.r1, o.r2, o.online))
			root, err := os.ReadFile(filepath.Join(o.dir, "metadata", "1.root.json"))
			require.NoError(t, err)
			cfg, err := config.New("https://example.invalid/metadata", root)
			require.NoError(t, err)
			cfg.LocalMetadataDir, cfg.LocalTargetsDir = t.TempDir(), t.TempDir()
			cfg.RemoteTargetsURL, cfg.Fetcher, cfg.PrefixTargetsWithHash = "https://example.invalid/targets", dirFetcher(o.dir), true
			u, err := updater.New(cfg)
			require.NoError(t, err)
			require.NoError(t, u.Refresh())
			info, err := u.GetTargetInfo("dir/a")
			require.NoError(t, err)
			_, data, err := u.DownloadTarget(info, "", "")
			require.NoError(t, err)
			assert.Equal(t, "content", string(data))
		})
	}
}
