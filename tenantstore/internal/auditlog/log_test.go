package auditlog_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/trusttree/trusttree/tenantstore/internal/auditlog"
)

type keypair struct {
	note.Signer
	note.Verifier
}

func newKey(t *testing.T) keypair {
	sk, vk, err := note.GenerateKey(rand.Reader, "test/audit")
	require.NoError(t, err)
	s, err := note.NewSigner(sk)
	require.NoError(t, err)
	v, err := note.NewVerifier(vk)
	require.NoError(t, err)
	return keypair{s, v}
}

func open(t *testing.T, dir string, k keypair) (*auditlog.Log, int, error) {
	n := 0
	l, err := auditlog.Open(dir, k.Signer, k.Verifier, func(auditlog.Entry) error { n++; return nil })
	if err == nil {
		t.Cleanup(func() { _ = l.Close() })
	}
	return l, n, err
}

func appendN(t *testing.T, l *auditlog.Log, n int) {
	require.NoError(t, l.Append(n, func(i int, seq int64) ([]byte, []byte, error) {
		return fmt.Appendf(nil, "leaf %d", seq), bytes.Repeat([]byte("b"), int(seq%50)), nil
	}))
}

// Each cut of the entries behind the checkpoint is a crash that opens again
// with what was whole; each cut before it is an attack.
func TestEveryCutIsRecoveredOrDetected(t *testing.T) {
	k, dir := newKey(t), t.TempDir()
	l, _, err := open(t, dir, k)
	require.NoError(t, err)
	appendN(t, l, 5)
	_, size, err := l.Checkpoint()
	require.NoError(t, err)
	require.EqualValues(t, 5, size)
	whole, err := os.ReadFile(filepath.Join(dir, "entries"))
	require.NoError(t, err)
	signed := len(whole)
	appendN(t, l, 3)
	want, err := tlog.TreeHash(8, l)
	require.NoError(t, err)
	whole, err = os.ReadFile(filepath.Join(dir, "entries"))
	require.NoError(t, err)
	hashes, err := os.ReadFile(filepath.Join(dir, "hashes"))
	require.NoError(t, err)
	cp, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	require.NoError(t, err)
	require.NoError(t, l.Close())

	for cut := 0; cut <= len(whole); cut++ {
		d := t.TempDir()
		for name, b := range map[string][]byte{"entries": whole[:cut], "hashes": make([]byte, len(hashes)), "checkpoint": cp} {
			if name == "hashes" { // what was synced with the checkpoint, and zeros behind
				copy(b, hashes[:tlog.StoredHashCount(5)*tlog.HashSize])
			}
			require.NoError(t, os.WriteFile(filepath.Join(d, name), b, 0o600))
		}
		l, n, err := open(t, d, k)
		if cut < signed {
			require.ErrorIs(t, err, auditlog.ErrTampered, "cut at %d", cut)
			continue
		}
		require.NoError(t, err, "cut at %d", cut)
		require.GreaterOrEqual(t, n, 5)
		appendN(t, l, 8-n)
		got, err := tlog.TreeHash(8, l)
		require.NoError(t, err)
		require.Equal(t, want, got, "cut at %d", cut)
	}
}

func TestHashesAreDerived(t *testing.T) {
	k, dir := newKey(t), t.TempDir()
	l, _, err := open(t, dir, k)
	require.NoError(t, err)
	appendN(t, l, 100)
	_, _, err = l.Checkpoint()
	require.NoError(t, err)
	require.NoError(t, l.Close())
	require.NoError(t, os.Remove(filepath.Join(dir, "hashes")))
	l, n, err := open(t, dir, k)
	require.NoError(t, err)
	require.Equal(t, 100, n)
	p, err := l.Prove(100, 42)
	require.NoError(t, err)
	h, err := tlog.TreeHash(100, l)
	require.NoError(t, err)
	require.NoError(t, tlog.CheckRecord(p, 100, h, 42, tlog.RecordHash([]byte("leaf 42"))))
}

func TestAnotherKeysCheckpointIsRefused(t *testing.T) {
	k, dir := newKey(t), t.TempDir()
	l, _, err := open(t, dir, k)
	require.NoError(t, err)
	appendN(t, l, 1)
	require.NoError(t, l.Close())
	_, _, err = open(t, dir, newKey(t))
	require.ErrorIs(t, err, auditlog.ErrTampered)
	require.NoError(t, os.Remove(filepath.Join(dir, "checkpoint")))
	_, _, err = open(t, dir, k)
	require.ErrorIs(t, err, auditlog.ErrTampered)
}

func FuzzCheckpoint(f *testing.F) {
	sk, vk, err := note.GenerateKey(rand.Reader, "test/audit")
	require.NoError(f, err)
	s, _ := note.NewSigner(sk)
	v, _ := note.NewVerifier(vk)
	b, err := note.Sign(&note.Note{Text: "test/audit\n3\n" + tlog.Hash{1}.String() + "\n"}, s)
	require.NoError(f, err)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		origin, tree, err := auditlog.OpenCheckpoint(b, v)
		if err == nil && (origin == "" || tree.N < 0) {
			t.Fatal("accepted nonsense")
		}
	})
}
