package update_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/internal/tufmeta"
	"github.com/trusttree/trusttree/update/repository"
)

// The tests of this file are named after the defects of go-tuf v2.4.2 that the
// client is built to not have. D10, D12 and D15 are in http_test.go.

func TestD1CorruptCacheHeals(t *testing.T) {
	f := newForge(t)
	for _, role := range []string{"root", "timestamp", "snapshot", "targets"} {
		for name, damage := range map[string]func([]byte) []byte{
			"empty":     func([]byte) []byte { return nil },
			"truncated": func(b []byte) []byte { return b[:len(b)/2] },
			"zeroed":    func(b []byte) []byte { return make([]byte, len(b)) },
			"null":      func([]byte) []byte { return []byte("null") },
		} {
			t.Run(role+" "+name, func(t *testing.T) {
				c := newTUF(t, f)
				require.NoError(t, c.refresh())
				file := filepath.Join(c.dir, role+".json")
				good, err := os.ReadFile(file)
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(file, damage(good), 0o600))
				c.reopen(t)
				require.NoError(t, c.refresh())
				now, err := os.ReadFile(file)
				require.NoError(t, err)
				assert.Equal(t, good, now)
			})
		}
	}
}

func TestD2ReplayOfRevokedKeysIsRefused(t *testing.T) {
	f := newForge(t)
	old := f.clone()
	c := newTUF(t, f)
	require.NoError(t, c.refresh())
	for _, r := range []string{"timestamp", "snapshot", "targets"} {
		f.keys[r] = []crypto.Signer{newKey(t)}
	}
	f.putRoot()
	f.publish(obj{})
	require.NoError(t, c.refresh())

	c.cfg.Images = old // root 1, everything signed by the revoked keys
	c.reopen(t)        // with the embedded root 1
	require.ErrorIs(t, c.refresh(), update.ErrSignature)
	require.NoError(t, os.RemoveAll(filepath.Join(c.dir, "timestamp.json")))
	require.ErrorIs(t, c.refresh(), update.ErrSignature)
}

func TestD2RootFloorHoldsWithoutTheCache(t *testing.T) {
	f := newForge(t)
	old := f.clone()
	f.putRoot()
	f.publish(obj{})
	c := newTUF(t, f)
	require.NoError(t, c.cfg.Floors.Raise(t.Context(), update.Floors{Images: update.RepositoryFloors{Root: 2}}))
	require.NoError(t, c.refresh())
	c.cfg.Images, c.cfg.Dir = old, t.TempDir()
	c.reopen(t)
	require.ErrorIs(t, c.refresh(), update.ErrRollback)
}

func TestPoisonedCacheIsNoTrustAnchor(t *testing.T) {
	f, evil := newForge(t), newForge(t)
	c := newTUF(t, f)
	require.NoError(t, c.refresh())
	require.NoError(t, os.WriteFile(filepath.Join(c.dir, "root.json"), evil.files["metadata/1.root.json"], 0o600))
	evil.putRoot()
	require.NoError(t, os.WriteFile(filepath.Join(c.dir, "root_history", "2.root.json"), evil.files["metadata/2.root.json"], 0o600))
	c.cfg.Images = evil
	c.reopen(t)
	require.ErrorIs(t, c.refresh(), update.ErrSignature)
	c.cfg.Images = f
	c.reopen(t)
	require.NoError(t, c.refresh())
}

func TestD3D4NullsAndHolesAreMalformed(t *testing.T) {
	const quote = `{"signatures":[],"signed":{"_type":%q,%s}}`
	for name, tc := range map[string]struct{ role, body string }{
		"null target":                {"targets", `"targets":{"x":null}`},
		"null targets":               {"targets", `"targets":null`},
		"null delegations":           {"targets", `"targets":{},"delegations":null`},
		"null delegated role":        {"targets", `"targets":{},"delegations":{"keys":{},"roles":[null]}`},
		"null key":                   {"targets", `"targets":{},"delegations":{"keys":{"a":null},"roles":[]}`},
		"timestamp without snapshot": {"timestamp", `"version":9,"spec_version":"1.0.31","expires":"2030-01-01T00:00:00Z","meta":{}`},
		"null meta":                  {"timestamp", `"meta":{"snapshot.json":null}`},
		"null snapshot meta":         {"snapshot", `"meta":{"targets.json":null}`},
		"snapshot without targets":   {"snapshot", `"version":9,"spec_version":"1.0.31","expires":"2030-01-01T00:00:00Z","meta":{}`},
		"null root role":             {"root", `"keys":{},"roles":{"root":null}`},
		"root without roles":         {"root", `"version":2,"spec_version":"1.0.31","expires":"2030-01-01T00:00:00Z","keys":{},"roles":{}`},
	} {
		t.Run(name, func(t *testing.T) {
			f := newForge(t)
			data := fmt.Appendf(nil, quote, tc.role, tc.body)
			switch tc.role {
			case "targets": // the layout without hashes of targets.json
				f.files["metadata/1.targets.json"] = data
				f.putSnapshot(f.signed("snapshot", f.version["snapshot"]+1, obj{"meta": obj{"targets.json": obj{"version": 1}}}))
			case "snapshot":
				f.files["metadata/1.snapshot.json"] = data
				f.putTimestamp(obj{"meta": obj{"snapshot.json": obj{"version": 1}}})
			case "timestamp":
				f.files["metadata/timestamp.json"] = data
			case "root":
				f.files["metadata/2.root.json"] = data
			}
			require.ErrorIs(t, newTUF(t, f).refresh(), update.ErrMalformed)
		})
	}
}

func TestMalformedJSONIsRefusedBeforeDecoding(t *testing.T) {
	good := `"_type":"timestamp","spec_version":"1.0.31","version":%s,"expires":"2030-01-01T00:00:00Z","meta":{"snapshot.json":{"version":1}}`
	for name, data := range map[string]string{
		"deep nesting":     strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000),
		"huge number":      `{"signed":{` + fmt.Sprintf(good, "1e309") + `},"signatures":[]}`,
		"fraction":         `{"signed":{` + fmt.Sprintf(good, "1.5") + `},"signatures":[]}`,
		"above 2^53":       `{"signed":{` + fmt.Sprintf(good, "9007199254740993") + `},"signatures":[]}`,
		"overflow":         `{"signed":{` + fmt.Sprintf(good, "99999999999999999999") + `},"signatures":[]}`,
		"negative version": `{"signed":{` + fmt.Sprintf(good, "-1") + `},"signatures":[]}`,
		"duplicate key":    `{"signed":{` + fmt.Sprintf(good, "1") + `,"version":2},"signatures":[]}`,
		"escaped twin key": `{"signed":{` + fmt.Sprintf(good, "1") + `,"vers\u0069on":2},"signatures":[]}`,
		"trailing data":    `{"signed":{` + fmt.Sprintf(good, "1") + `},"signatures":[]} {}`,
		"byte order mark":  "\xef\xbb\xbf" + `{"signed":{` + fmt.Sprintf(good, "1") + `},"signatures":[]}`,
		"invalid UTF-8":    `{"signed":{` + fmt.Sprintf(good, "1") + `,"x":"` + "\xff" + `"},"signatures":[]}`,
		"not an object":    `[]`,
		"a string":         `"x"`,
		"empty":            ``,
		"signed is a list": `{"signed":[],"signatures":[]}`,
		"many signatures":  `{"signed":{` + fmt.Sprintf(good, "1") + `},"signatures":[` + strings.TrimSuffix(strings.Repeat(`{"keyid":"a","sig":""},`, 600), ",") + `]}`,
	} {
		t.Run(name, func(t *testing.T) {
			f := newForge(t)
			f.files["metadata/timestamp.json"] = []byte(data)
			c := newTUF(t, f, func(c *update.ClientConfig) { c.Limits.Timestamp = 1 << 20 })
			require.ErrorIs(t, c.refresh(), update.ErrMalformed)
		})
	}
}

func TestD5KeysOfWrongLengthAndThresholdsAreRefused(t *testing.T) {
	signer := newKey(t)
	id, key := keyObj(t, signer)
	short := obj{"keytype": "ed25519", "scheme": "ed25519", "keyval": obj{"public": "abcd"}}
	for name, tc := range map[string]struct {
		keys obj
		role obj
	}{
		"short ed25519":      {obj{id: short}, obj{"keyids": []any{id}, "threshold": 1}},
		"no PEM":             {obj{id: obj{"keytype": "ecdsa", "scheme": "x", "keyval": obj{"public": "zz"}}}, obj{"keyids": []any{id}, "threshold": 1}},
		"threshold 0":        {obj{id: key}, obj{"keyids": []any{id}, "threshold": 0}},
		"threshold negative": {obj{id: key}, obj{"keyids": []any{id}, "threshold": -1}},
		"duplicate key ID":   {obj{id: key}, obj{"keyids": []any{id, id}, "threshold": 2}},
		"missing key":        {obj{}, obj{"keyids": []any{id}, "threshold": 1}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newForge(t)
			tc.role["name"], tc.role["terminating"], tc.role["paths"] = "maker", false, []any{"*"}
			f.publish(obj{"delegations": obj{"keys": tc.keys, "roles": []any{tc.role}}})
			require.ErrorIs(t, newTUF(t, f).refresh(), update.ErrMalformed)
		})
	}
	t.Run("one key under two IDs counts once", func(t *testing.T) {
		f := newForge(t)
		role := obj{"name": "maker", "terminating": false, "paths": []any{"*"}, "keyids": []any{id, "other"}, "threshold": 2}
		signed := f.signed("targets", 1, obj{"targets": obj{"x": f.addTarget("x", []byte("x"))}})
		payload, err := tufmeta.Payload(signed)
		require.NoError(t, err)
		sig, err := tufmeta.Sign(payload, signer)
		require.NoError(t, err)
		h := hex.EncodeToString(sig)
		data := fmt.Appendf(nil, `{"signed":%s,"signatures":[{"keyid":%q,"sig":%q},{"keyid":"other","sig":%q}]}`, payload, id, h, h)
		f.publish(obj{"delegations": obj{"keys": obj{id: key, "other": key}, "roles": []any{role}}}, obj{"name": "maker", "data": data})
		c := newTUF(t, f)
		require.NoError(t, c.refresh())
		_, err = c.Target(t.Context(), "x")
		require.ErrorIs(t, err, update.ErrSignature)
	})
}

// D6: a role that two others delegate to is verified for each of them.
func TestD6DelegatedRoleIsVerifiedAgainstEachDelegator(t *testing.T) {
	f := newForge(t)
	good, other := newKey(t), newKey(t)
	shared := f.envelope(f.signed("targets", 1, obj{"targets": obj{
		"a/x": f.addTarget("a/x", []byte("x")), "b/x": f.addTarget("b/x", []byte("x"))}}), good)
	mid := func(name, path string, inner crypto.Signer) (obj, obj, obj) {
		keys, role := f.delegation("shared", []any{path}, inner)
		s := newKey(t)
		data := f.envelope(f.signed("targets", 1, obj{"targets": obj{}, "delegations": obj{"keys": keys, "roles": []any{role}}}), s)
		k, r := f.delegation(name, []any{path}, s)
		return k, r, obj{"name": name, "data": data}
	}
	k1, r1, f1 := mid("one", "a/*", good)
	k2, r2, f2 := mid("two", "b/*", other)
	for id, k := range k2 {
		k1[id] = k
	}
	f.publish(obj{"delegations": obj{"keys": k1, "roles": []any{r1, r2}}}, f1, f2, obj{"name": "shared", "data": shared})
	c := newTUF(t, f)
	require.NoError(t, c.refresh())
	_, err := c.Target(t.Context(), "a/x")
	require.NoError(t, err)
	_, err = c.Target(t.Context(), "b/x")
	require.ErrorIs(t, err, update.ErrSignature, "cached for one delegator, but the other one did not sign for it")
	c.reopen(t)
	require.NoError(t, c.refresh())
	_, err = c.Target(t.Context(), "b/x")
	require.ErrorIs(t, err, update.ErrSignature)
}

func TestD7PathHashPrefixesAreHex(t *testing.T) {
	s := newKey(t)
	f := newForge(t)
	sum := sha256.Sum256([]byte("file"))
	prefix := hex.EncodeToString(sum[:])[:2]
	look := func(prefixes ...any) error {
		keys, role := f.delegation("bin", nil, s)
		delete(role, "paths")
		role["path_hash_prefixes"] = prefixes
		f.publish(obj{"delegations": obj{"keys": keys, "roles": []any{role}}},
			obj{"name": "bin", "data": f.envelope(f.signed("targets", 1, obj{"targets": obj{"file": f.addTarget("file", []byte("x"))}}), s)})
		c := newTUF(t, f)
		require.NoError(t, c.refresh())
		_, err := c.Target(t.Context(), "file")
		return err
	}
	require.NoError(t, look(prefix))
	require.ErrorIs(t, look("zz"), update.ErrNotInRepository)
	require.ErrorIs(t, look(fmt.Sprintf("%02x", sum[0]^1)), update.ErrNotInRepository)
	require.ErrorIs(t, look(""), update.ErrNotInRepository)
}

func TestD8TwoHashesAreAskedForInOrder(t *testing.T) {
	data := []byte("content")
	s2, s5 := sha256.Sum256(data), sha512.Sum512(data)
	for _, stored := range []string{hex.EncodeToString(s2[:]), hex.EncodeToString(s5[:])} {
		f := newForge(t)
		f.files["targets/"+stored+".x"] = data
		f.publish(obj{"targets": obj{"x": obj{"length": len(data), "hashes": obj{"sha256": hex.EncodeToString(s2[:]), "sha512": hex.EncodeToString(s5[:])}}}})
		c := newTUF(t, f)
		require.NoError(t, c.refresh())
		for range 10 {
			tgt, err := c.Target(t.Context(), "x")
			require.NoError(t, err)
			var out bytes.Buffer
			require.NoError(t, c.Download(t.Context(), tgt, &out))
			assert.Equal(t, data, out.Bytes())
		}
	}
}

func TestD9ForbiddenNextRootIsTheEnd(t *testing.T) {
	f := newForge(t)
	src := serve(t, func(w http.ResponseWriter, r *http.Request) {
		data, ok := f.files[strings.TrimPrefix(r.URL.Path, "/")]
		if !ok {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = w.Write(data)
	})
	c := newTUF(t, f, func(c *update.ClientConfig) { c.Images = src })
	require.NoError(t, c.refresh())
}

func TestD11AbsentFilesAreNotRetried(t *testing.T) {
	n := 0
	src := serve(t, func(w http.ResponseWriter, _ *http.Request) { n++; w.WriteHeader(http.StatusNotFound) },
		func(c *update.HTTPConfig) { c.Attempts = 5 })
	_, err := readSource(t.Context(), src, "metadata/2.root.json", 0)
	require.Error(t, err)
	assert.Equal(t, 1, n)
}

// endless is a source of one huge file that is never in memory.
type endless struct {
	update.Source
	n int64
}

func (s endless) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	if !strings.HasPrefix(name, "targets/") {
		return s.Source.Open(ctx, name, off, n)
	}
	return io.NopCloser(io.LimitReader(zeros{}, s.n-off)), nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestD13TargetsAreStreamed(t *testing.T) {
	const size = 200 << 20
	h := sha256.New()
	_, err := io.CopyN(h, zeros{}, size)
	require.NoError(t, err)
	f := newForge(t)
	f.publish(obj{"targets": obj{"big": obj{"length": size, "hashes": obj{"sha256": hex.EncodeToString(h.Sum(nil))}}}})
	c := newTUF(t, f, func(c *update.ClientConfig) { c.Images = endless{Source: f, n: size} })
	require.NoError(t, c.refresh())
	tgt, err := c.Target(t.Context(), "big")
	require.NoError(t, err)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	require.NoError(t, c.Download(t.Context(), tgt, io.Discard))
	runtime.ReadMemStats(&after)
	assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(8<<20), "bytes allocated for a file of 200 MiB")

	c.cfg.Images = endless{Source: f, n: size + 1}
	c.reopen(t)
	require.NoError(t, c.refresh())
	require.ErrorIs(t, c.Download(t.Context(), tgt, io.Discard), update.ErrTooLarge)
	c.cfg.Images = endless{Source: f, n: size - 1}
	c.cfg.Limits.Attempts = 1
	c.reopen(t)
	require.ErrorIs(t, c.Download(t.Context(), tgt, io.Discard), update.ErrHash)
}

func TestD14DiskFullLeavesTheOldFile(t *testing.T) {
	p := newPublisher(t)
	p.release("2.0", 1, image("2.0", 1<<20))
	d := newDevice(t, p, func(_ *update.ClientConfig, ic *update.InstallerConfig) {
		ic.Slots = fullSlots{ic.Slots, 500 << 10}
	})
	require.ErrorIs(t, d.install(), update.ErrNoSpace)
	st := d.reboot()
	assert.Equal(t, update.Writing, st.Phase)
	assert.True(t, d.running().Good)
	assert.Equal(t, update.Slot("a"), d.running().Slot)
}

// fullSlots run out of space after n bytes of a part.
type fullSlots struct {
	update.Slots
	n int64
}

func (s fullSlots) Open(ctx context.Context, slot update.Slot, part string) (update.SlotFile, error) {
	f, err := s.Slots.Open(ctx, slot, part)
	return fullSlot{f, s.n}, err
}

type fullSlot struct {
	update.SlotFile
	n int64
}

func (f fullSlot) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.n {
		return 0, &os.PathError{Op: "write", Path: "slot", Err: syscall.ENOSPC}
	}
	return f.SlotFile.WriteAt(p, off)
}

func TestD16ClockAt1970DoesNotMakeFresh(t *testing.T) {
	f := newForge(t)
	var now time.Time
	build := f.now.AddDate(1, 0, 0)
	c := newTUF(t, f, func(c *update.ClientConfig) { c.Now = func() time.Time { return now }; c.BuildTime = build })
	now = time.Unix(0, 0)
	require.ErrorIs(t, c.refresh(), update.ErrExpired, "build time")
	c.cfg.BuildTime = time.Time{}
	c.reopen(t)
	st, err := c.Refresh(t.Context())
	require.NoError(t, err)
	assert.False(t, st.ClockBehind)
	require.NoError(t, c.cfg.Floors.Raise(t.Context(), update.Floors{Time: build}))
	require.ErrorIs(t, c.refresh(), update.ErrExpired, "signed time floor")
	now = f.now.AddDate(30, 0, 0)
	err = c.refresh()
	require.ErrorIs(t, err, update.ErrExpired)
	assert.Contains(t, err.Error(), "clock ahead")
	fl, err := c.cfg.Floors.Load(t.Context())
	require.NoError(t, err)
	assert.True(t, fl.Time.Equal(build), "a clock that is ahead raises no floor")
}

func TestD17KeysOfEveryKindSignAndVerify(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	signers := []crypto.Signer{newKey(t), p256, p384, rsaKey}
	root := newKey(t)
	dir := t.TempDir()
	repo, err := repository.Create(t.Context(), repository.DirStore(dir), repository.Config{
		Root: role(root), Targets: role(signers...), // all four must sign
		Snapshot: role(p384), Timestamp: role(p256),
	}, append(signers, root)...)
	require.NoError(t, err)
	embedded, err := repo.Root(t.Context())
	require.NoError(t, err)
	c, err := update.NewClient(update.ClientConfig{Root: embedded, Dir: t.TempDir(), Images: update.FSSource(os.DirFS(dir)), Floors: update.FileFloors(t.TempDir())})
	require.NoError(t, err)
	_, err = c.Refresh(t.Context())
	require.NoError(t, err)
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	require.NoError(t, err)
	_, _, err = tufmeta.KeyOf(p224.Public())
	require.ErrorIs(t, err, repository.ErrKey)
}

func TestD18RefreshIsRepeatableAndConcurrent(t *testing.T) {
	f := newForge(t)
	c := newTUF(t, f)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 3 {
				assert.NoError(t, c.refresh())
				_, err := c.Target(context.Background(), "nope")
				assert.ErrorIs(t, err, update.ErrNotInRepository)
			}
		})
	}
	wg.Wait()
	f.publish(obj{"targets": obj{"x": f.addTarget("x", []byte("x"))}})
	require.NoError(t, c.refresh())
	_, err := c.Target(t.Context(), "x")
	require.NoError(t, err)
}

func TestD19OddAndForbiddenRoleNames(t *testing.T) {
	for _, name := range []string{"?", "#", "/abs", "../up", "..", "ü b", "a%2fb", strings.Repeat("ü", 99)} {
		t.Run(name, func(t *testing.T) {
			f, s := newForge(t), newKey(t)
			keys, role := f.delegation(name, []any{"*"}, s)
			f.publish(obj{"delegations": obj{"keys": keys, "roles": []any{role}}},
				obj{"name": name, "data": f.envelope(f.signed("targets", 1, obj{"targets": obj{"x": f.addTarget("x", []byte("x"))}}), s)})
			c := newTUF(t, f)
			require.NoError(t, c.refresh())
			_, err := c.Target(t.Context(), "x")
			require.NoError(t, err)
			assert.FileExists(t, filepath.Join(c.dir, tufmeta.CacheFile(name)))
			c.reopen(t) // the cache is hit for odd names too
			require.NoError(t, c.refresh())
			f.asked = nil
			_, err = c.Target(t.Context(), "x")
			require.NoError(t, err)
			assert.Empty(t, f.asked)
		})
	}
	for _, name := range []string{"root", "timestamp", "snapshot", "targets", "Root", ""} {
		t.Run("forbidden "+name, func(t *testing.T) {
			f, s := newForge(t), newKey(t)
			keys, role := f.delegation(name, []any{"*"}, s)
			f.publish(obj{"delegations": obj{"keys": keys, "roles": []any{role}}})
			c := newTUF(t, f)
			require.ErrorIs(t, c.refresh(), update.ErrMalformed)
		})
	}
}

func TestD20LimitsFollowSignedLengths(t *testing.T) {
	f := newForge(t)
	targets := obj{}
	for i := range 2000 {
		targets[fmt.Sprintf("a/very/long/directory/name/so/that/entries/are/large/%d", i)] = obj{"length": 1, "hashes": obj{"sha256": strings.Repeat("00", 32)}}
	}
	f.publish(obj{"targets": targets})
	c := newTUF(t, f, func(c *update.ClientConfig) { c.Limits.Targets = 100 << 10 })
	require.NoError(t, c.refresh(), "the snapshot states the length")
	c = newTUF(t, f, func(c *update.ClientConfig) { c.Limits.Targets, c.Limits.Signed = 100<<10, 150<<10 })
	require.ErrorIs(t, c.refresh(), update.ErrTooLarge)

	f.putSnapshot(f.signed("snapshot", f.version["snapshot"]+1, obj{"meta": obj{"targets.json": obj{"version": f.version["targets"]}}}))
	c = newTUF(t, f, func(c *update.ClientConfig) { c.Limits.Targets = 100 << 10 })
	require.ErrorIs(t, c.refresh(), update.ErrTooLarge, "nobody states the length")
}
