package tenantstore_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/trusttree/trusttree/tenantstore"
)

// testWitness does what C2SP tlog-witness and tlog-cosignature ask of one. It
// is written from those texts alone, and shares no code with the store.
type testWitness struct {
	name string
	key  ed25519.PrivateKey
	size int64
	root tlog.Hash
}

func newWitness(name string) *testWitness {
	_, key, _ := ed25519.GenerateKey(nil)
	return &testWitness{name: name, key: key}
}

func (w *testWitness) hash() []byte {
	h := sha256.Sum256(append([]byte(w.name+"\n\x04"), w.key.Public().(ed25519.PublicKey)...))
	return h[:4]
}

func (w *testWitness) vkey() string {
	return fmt.Sprintf("%s+%x+%s", w.name, w.hash(), base64.StdEncoding.EncodeToString(append([]byte{4}, w.key.Public().(ed25519.PublicKey)...)))
}

// cosign returns the signature line for a checkpoint's text.
func (w *testWitness) cosign(text string, unix uint64) string {
	sig := ed25519.Sign(w.key, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", unix, text))
	blob := append(binary.BigEndian.AppendUint64(w.hash(), unix), sig...)
	return fmt.Sprintf("— %s %s\n", w.name, base64.StdEncoding.EncodeToString(blob))
}

// addCheckpoint takes a request and returns the joined checkpoint.
func (w *testWitness) addCheckpoint(body []byte, logKey string) ([]byte, error) {
	head, checkpoint, ok := strings.Cut(string(body), "\n\n")
	if !ok {
		return nil, errors.New("no empty line")
	}
	lines := strings.Split(head, "\n")
	var old int64
	if _, err := fmt.Sscanf(lines[0], "old %d", &old); err != nil || old != w.size {
		return nil, fmt.Errorf("conflict: %d", w.size)
	}
	var proof tlog.TreeProof
	for _, l := range lines[1:] {
		h, err := tlog.ParseHash(l)
		if err != nil {
			return nil, err
		}
		proof = append(proof, h)
	}
	v, err := note.NewVerifier(logKey)
	if err != nil {
		return nil, err
	}
	n, err := note.Open([]byte(checkpoint), note.VerifierList(v))
	if err != nil {
		return nil, err
	}
	var size int64
	var root tlog.Hash
	text := strings.Split(n.Text, "\n")
	if _, err := fmt.Sscan(text[1], &size); err != nil {
		return nil, err
	}
	if root, err = tlog.ParseHash(text[2]); err != nil {
		return nil, err
	}
	if old > 0 && old < size {
		if err := tlog.CheckTree(proof, size, root, old, w.root); err != nil {
			return nil, err
		}
	}
	w.size, w.root = size, root
	return []byte(checkpoint + w.cosign(n.Text, 1_800_000_000)), nil
}

func TestWitnessedLog(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	one, two, stranger := newWitness("witness.example/one"), newWitness("witness.example/two"), newWitness("witness.example/stranger")
	w.edit = func(c *tenantstore.Config) { c.Witnesses = []string{one.vkey(), two.vkey()} }
	s := w.open()
	a := w.tenant(s, "acme")
	for _, x := range []*testWitness{one, two, one} {
		body, err := s.WitnessRequest(ctx, x.size)
		require.NoError(t, err)
		cosigned, err := x.addCheckpoint(body, s.AuditKey())
		require.NoError(t, err)
		require.NoError(t, s.Cosign(ctx, cosigned))
		require.NoError(t, s.Cosign(ctx, cosigned), "again")
		require.NoError(t, s.Hold(ctx, w.operator(s), "acme"))
	}
	_, err := s.WitnessRequest(ctx, 1<<40)
	require.ErrorIs(t, err, tenantstore.ErrInvalid)

	cp, err := s.Checkpoint(ctx)
	require.NoError(t, err)
	text, _, _ := strings.Cut(string(cp), "\n\n")
	text += "\n"
	// Another tree of the same log, and one that is larger than the log: the
	// witness saw what this log is not.
	other := newWorld(t)
	other.edit = w.edit
	so := other.open()
	ocp, err := so.Checkpoint(ctx)
	require.NoError(t, err)
	for name, bad := range map[string]string{
		"no cosignature":                      string(cp),
		"by a witness that is not configured": string(cp) + stranger.cosign(text, 1),
		"cosignature of another text":         string(cp) + one.cosign(text+"x", 1),
		"another log":                         string(ocp) + one.cosign(text, 1),
		"nothing":                             "",
	} {
		err := s.Cosign(ctx, []byte(bad))
		require.ErrorIs(t, err, tenantstore.ErrInvalid, name)
	}
	var out bytes.Buffer
	require.NoError(t, w.handle(s, "acme").ExportAudit(ctx, &out))
	trail, err := tenantstore.VerifyAuditTrail(bytes.NewReader(out.Bytes()), s.AuditKey(), one.vkey(), two.vkey())
	require.NoError(t, err)
	require.Len(t, trail.Logs[0].Witnesses, 1)
	assert.Equal(t, "witness.example/one", trail.Logs[0].Witnesses[0].Witness)
	assert.Equal(t, int64(1_800_000_000), trail.Logs[0].Witnesses[0].Time.Unix())
	assert.Equal(t, one.size, trail.Logs[0].Witnessed)
	assert.Less(t, trail.Logs[0].Witnessed, trail.Logs[0].Size)
	trail, err = tenantstore.VerifyAuditTrail(bytes.NewReader(out.Bytes()), s.AuditKey())
	require.NoError(t, err, "without the witness's key its word is not reported")
	require.Empty(t, trail.Logs[0].Witnesses)
	require.Error(t, func() error {
		_, err := tenantstore.VerifyAuditTrail(bytes.NewReader(bytes.Replace(out.Bytes(), []byte(`"extends":[`), []byte(`"extends":["",`), 1)), s.AuditKey())
		return err
	}())
	_ = a
	require.NoError(t, s.Close(ctx))
}

// Whoever puts the whole store back, checkpoint and all, is found out by what a
// witness saw.
func TestRolledBackLogIsRefusedByItsCosignature(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	one := newWitness("w/one")
	w.edit = func(c *tenantstore.Config) { c.Witnesses = []string{one.vkey()} }
	s := w.open()
	w.tenant(s, "acme")
	require.NoError(t, s.Close(ctx))
	kept := t.TempDir()
	copyTree(t, filepath.Join(w.dir, "store"), kept)
	s = w.open()
	w.tenant(s, "beta")
	body, err := s.WitnessRequest(ctx, 0)
	require.NoError(t, err)
	cosigned, err := one.addCheckpoint(body, s.AuditKey())
	require.NoError(t, err)
	require.NoError(t, s.Close(ctx))
	require.NoError(t, os.RemoveAll(filepath.Join(w.dir, "store")))
	copyTree(t, kept, filepath.Join(w.dir, "store"))
	s = w.open()
	require.ErrorIs(t, s.Cosign(ctx, cosigned), tenantstore.ErrTampered, "the witness saw more than is there")
	require.NoError(t, s.Close(ctx))
	require.NoError(t, os.WriteFile(filepath.Join(w.dir, "store", "audit", "cosigned"), cosigned, 0o600))
	_, err = tenantstore.Open(context.Background(), w.config())
	require.ErrorIs(t, err, tenantstore.ErrTampered, "when it is opened too")
}

func TestMalformedWitnessKeysAreRefused(t *testing.T) {
	good := newWitness("w/one").vkey()
	for _, k := range []string{"", "w", "w+00000000+", good[1:], strings.Replace(good, "+", "+0", 1), good + "x", strings.Replace(good, "w/one", "w one", 1)} {
		w := newWorld(t)
		w.edit = func(c *tenantstore.Config) { c.Witnesses = []string{k} }
		_, err := tenantstore.Open(t.Context(), w.config())
		require.ErrorIs(t, err, tenantstore.ErrInvalid, k)
	}
}
