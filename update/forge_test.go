package update_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/internal/tufmeta"
)

type obj = map[string]any

// forge is a repository made by hand, so that it can be wrong in any way. It
// is a Source that counts what was asked for.
type forge struct {
	t       *testing.T
	keys    map[string][]crypto.Signer // by role
	root    obj
	files   map[string][]byte
	now     time.Time
	version map[string]int

	mu    sync.Mutex
	asked []string
}

func newForge(t *testing.T) *forge {
	f := &forge{t: t, keys: map[string][]crypto.Signer{}, files: map[string][]byte{}, version: map[string]int{},
		now: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)}
	for _, r := range []string{"root", "timestamp", "snapshot", "targets"} {
		f.keys[r] = []crypto.Signer{newKey(t)}
	}
	f.putRoot()
	f.publish(obj{})
	return f
}

// clone is a fork of the repository with the same keys.
func (f *forge) clone() *forge {
	return &forge{t: f.t, keys: maps.Clone(f.keys), files: maps.Clone(f.files), version: maps.Clone(f.version), now: f.now, root: f.root}
}

func (f *forge) Open(ctx context.Context, name string, off, _ int64) (io.ReadCloser, error) {
	f.mu.Lock()
	f.asked = append(f.asked, name)
	f.mu.Unlock()
	data, ok := f.files[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return io.NopCloser(bytes.NewReader(data[min(int(off), len(data)):])), ctx.Err()
}

func (f *forge) expires() string { return f.now.AddDate(0, 6, 0).Format(time.RFC3339) }

func keyObj(t *testing.T, s crypto.Signer) (string, obj) {
	k, id, err := tufmeta.KeyOf(s.Public())
	require.NoError(t, err)
	return id, obj{"keytype": k.Type, "scheme": k.Scheme, "keyval": obj{"public": k.Value.PublicKey}}
}

func (f *forge) roleObj(keys obj, signers ...crypto.Signer) obj {
	ids := []any{}
	for _, s := range signers {
		id, k := keyObj(f.t, s)
		keys[id] = k
		ids = append(ids, id)
	}
	return obj{"keyids": ids, "threshold": len(ids)}
}

// envelope signs a signed part.
func (f *forge) envelope(signed obj, signers ...crypto.Signer) []byte {
	payload, err := tufmeta.Payload(signed)
	require.NoError(f.t, err)
	sigs := []any{}
	for _, s := range signers {
		id, _ := keyObj(f.t, s)
		sig, err := tufmeta.Sign(payload, s)
		require.NoError(f.t, err)
		sigs = append(sigs, obj{"keyid": id, "sig": hex.EncodeToString(sig)})
	}
	data, err := json.Marshal(obj{"signed": signed, "signatures": sigs})
	require.NoError(f.t, err)
	return data
}

func (f *forge) signed(typ string, version int, more obj) obj {
	o := obj{"_type": typ, "spec_version": "1.0.31", "version": version, "expires": f.expires()}
	maps.Copy(o, more)
	return o
}

// putRoot publishes the next root with the current keys.
func (f *forge) putRoot(signers ...crypto.Signer) {
	keys, roles := obj{}, obj{}
	for r, s := range f.keys {
		roles[r] = f.roleObj(keys, s...)
	}
	f.version["root"]++
	f.root = f.signed("root", f.version["root"], obj{"consistent_snapshot": true, "keys": keys, "roles": roles})
	f.files[fmt.Sprintf("metadata/%d.root.json", f.version["root"])] = f.envelope(f.root, append(signers, f.keys["root"]...)...)
}

func meta(version int, data []byte) obj {
	sum := sha256.Sum256(data)
	return obj{"version": version, "length": len(data), "hashes": obj{"sha256": hex.EncodeToString(sum[:])}}
}

// publish publishes targets with the given members, and what pins them.
func (f *forge) publish(more obj, roles ...obj) {
	f.version["targets"]++
	t := f.signed("targets", f.version["targets"], obj{"targets": obj{}})
	maps.Copy(t, more)
	f.pin(f.envelope(t, f.keys["targets"]...), roles...)
}

// pin publishes a targets file whatever it is, the roles it delegates to, and
// the snapshot and timestamp above them.
func (f *forge) pin(targets []byte, roles ...obj) {
	f.files[fmt.Sprintf("metadata/%d.targets.json", f.version["targets"])] = targets
	metas := obj{"targets.json": meta(f.version["targets"], targets)}
	for _, r := range roles {
		name, data := r["name"].(string), r["data"].([]byte)
		f.files["metadata/"+tufmeta.MetadataName(name, 1)] = data
		metas[name+".json"] = meta(1, data)
	}
	f.putSnapshot(f.signed("snapshot", f.version["snapshot"]+1, obj{"meta": metas}))
}

func (f *forge) putSnapshot(signed obj) {
	f.version["snapshot"]++
	data := f.envelope(signed, f.keys["snapshot"]...)
	f.files[fmt.Sprintf("metadata/%d.snapshot.json", f.version["snapshot"])] = data
	f.putTimestamp(obj{"meta": obj{"snapshot.json": meta(f.version["snapshot"], data)}})
}

func (f *forge) putTimestamp(more obj) {
	f.version["timestamp"]++
	f.files["metadata/timestamp.json"] = f.envelope(f.signed("timestamp", f.version["timestamp"], more), f.keys["timestamp"]...)
}

// addTarget adds the file of a target and returns its entry.
func (f *forge) addTarget(name string, data []byte) obj {
	sum := sha256.Sum256(data)
	h := hex.EncodeToString(sum[:])
	f.files["targets/"+tufmeta.TargetName(name, h)] = data
	return obj{"length": len(data), "hashes": obj{"sha256": h}}
}

func (f *forge) delegation(name string, paths []any, signers ...crypto.Signer) (keys obj, role obj) {
	keys = obj{}
	role = f.roleObj(keys, signers...)
	role["name"], role["terminating"], role["paths"] = name, false, paths
	return keys, role
}

// tuf is a client of a forged repository.
type tuf struct {
	*update.Client
	dir string
	cfg update.ClientConfig
}

func newTUF(t *testing.T, f *forge, change ...func(*update.ClientConfig)) *tuf {
	t.Helper()
	c := &tuf{dir: t.TempDir()}
	c.cfg = update.ClientConfig{Root: f.files["metadata/1.root.json"], Dir: c.dir, Images: f,
		Floors: update.FileFloors(filepath.Join(c.dir, "floors")), Now: func() time.Time { return f.now.Add(time.Hour) }}
	for _, g := range change {
		g(&c.cfg)
	}
	c.reopen(t)
	return c
}

func (c *tuf) reopen(t *testing.T) {
	t.Helper()
	var err error
	c.Client, err = update.NewClient(c.cfg)
	require.NoError(t, err)
}

func (c *tuf) refresh() error {
	_, err := c.Client.Refresh(context.Background())
	return err
}

// keySets are the floors' names of the keys in the newest root.
func keySets(f *forge) map[string]string {
	m, err := tufmeta.Decode[metadata.RootType](f.files[fmt.Sprintf("metadata/%d.root.json", f.version["root"])])
	require.NoError(f.t, err)
	out := map[string]string{}
	for _, r := range []string{"timestamp", "snapshot", "targets"} {
		out[r] = tufmeta.KeySet(&m.Signed, r)
	}
	return out
}
