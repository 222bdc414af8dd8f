package auditlog

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/trusttree/trusttree/internal/durable"
)

// algCosignature is the signature type of a witness (C2SP tlog-cosignature).
const algCosignature = 4

// witness verifies timestamped cosignatures, "cosignature/v1".
type witness struct {
	name string
	hash uint32
	pub  ed25519.PublicKey
}

// NewWitness reads the verifier key of a witness: NAME+HASH+KEY as in
// golang.org/x/mod/sumdb/note, with signature type 4.
func NewWitness(vkey string) (note.Verifier, error) {
	name, rest, _ := strings.Cut(vkey, "+")
	hash16, key64, ok := strings.Cut(rest, "+")
	hash, herr := hex.DecodeString(hash16)
	key, kerr := base64.StdEncoding.DecodeString(key64)
	if !ok || name == "" || len(name) > 256 || strings.ContainsAny(name, " \n") || herr != nil || kerr != nil || len(hash) != 4 ||
		len(key) != 1+ed25519.PublicKeySize || key[0] != algCosignature {
		return nil, errors.New("not a witness's verifier key")
	}
	w := &witness{name: name, hash: CosignerHash(name, key[1:]), pub: ed25519.PublicKey(key[1:])}
	if w.hash != binary.BigEndian.Uint32(hash) {
		return nil, errors.New("witness's verifier key has another hash than its name and key")
	}
	return w, nil
}

// CosignerHash is the key hash of a witness.
func CosignerHash(name string, pub []byte) uint32 {
	h := sha256.Sum256(append([]byte(name+"\n"), append([]byte{algCosignature}, pub...)...))
	return binary.BigEndian.Uint32(h[:])
}

func (w *witness) Name() string    { return w.name }
func (w *witness) KeyHash() uint32 { return w.hash }
func (w *witness) Verify(msg, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	return ed25519.Verify(w.pub, CosignedText(binary.BigEndian.Uint64(sig), msg), sig[8:])
}

// CosignedText is what a witness signs for a checkpoint's text at a time.
func CosignedText(unix uint64, text []byte) []byte {
	return fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", unix, text)
}

// Cosignature says which witness saw a checkpoint, and when.
type Cosignature struct {
	Witness string    `json:"witness"`
	Time    time.Time `json:"time"`
}

// Cosignatures verifies a checkpoint and returns what witnesses among the
// given ones say about it.
func Cosignatures(checkpoint []byte, log note.Verifier, witnesses []note.Verifier) (tree tlog.Tree, seen []Cosignature, err error) {
	_, tree, err = OpenCheckpoint(checkpoint, log)
	if err != nil {
		return tree, nil, err
	}
	n, err := note.Open(checkpoint, note.VerifierList(append([]note.Verifier{log}, witnesses...)...))
	if err != nil {
		return tree, nil, err
	}
	for _, s := range n.Sigs {
		for _, w := range witnesses {
			if w.Name() != s.Name || w.KeyHash() != s.Hash {
				continue
			}
			raw, err := base64.StdEncoding.DecodeString(s.Base64)
			if err != nil || len(raw) < 12 {
				return tree, nil, errors.New("cosignature has no time")
			}
			seen = append(seen, Cosignature{s.Name, time.Unix(int64(binary.BigEndian.Uint64(raw[4:])), 0).UTC()})
		}
	}
	return tree, seen, nil
}

// AddCheckpoint returns the body of a request to a witness (C2SP tlog-witness,
// add-checkpoint) that last saw old entries, and the size it is for.
func (l *Log) AddCheckpoint(old int64) ([]byte, error) {
	cp, n, err := l.Checkpoint()
	if err != nil {
		return nil, err
	}
	if old < 0 || old > n {
		return nil, fmt.Errorf("the log has %d entries, not %d", n, old)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "old %d\n", old)
	if old > 0 && old < n {
		proof, err := tlog.ProveTree(n, old, l)
		if err != nil {
			return nil, err
		}
		for _, h := range proof {
			fmt.Fprintln(&b, h)
		}
	}
	fmt.Fprintf(&b, "\n%s", cp)
	return b.Bytes(), nil
}

// Cosigned returns the newest checkpoint that a witness cosigned, and the proof
// that the tree of n entries extends it; nil when there is none or it is newer.
func (l *Log) Cosigned(n int64, verifier note.Verifier) ([]byte, tlog.TreeProof, error) {
	b, tree, err := l.readCosigned(verifier)
	if b == nil || err != nil || tree.N > n || tree.N == 0 {
		return nil, nil, err
	}
	if tree.N == n {
		return b, nil, nil
	}
	proof, err := tlog.ProveTree(n, tree.N, l)
	return b, proof, err
}

func (l *Log) readCosigned(verifier note.Verifier) (b []byte, tree tlog.Tree, err error) {
	name := filepath.Join(l.dir, "cosigned")
	fi, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, tree, nil
	}
	if err != nil {
		return nil, tree, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxCheckpoint {
		return nil, tree, fmt.Errorf("%w: %s is no checkpoint", ErrTampered, name)
	}
	if b, err = os.ReadFile(name); err != nil {
		return nil, tree, err
	}
	if _, tree, err = OpenCheckpoint(b, verifier); err != nil {
		return nil, tree, fmt.Errorf("%w: %s: %w", ErrTampered, name, err)
	}
	return b, tree, nil
}

// Cosign keeps a checkpoint of this log that witnesses cosigned. It is refused
// when no witness did, when it is not of this log, or says something else than
// the log; one that is older than the kept one changes nothing. Cosignatures of
// the same checkpoint are kept together.
func (l *Log) Cosign(b []byte, verifier note.Verifier, witnesses []note.Verifier) error {
	tree, seen, err := Cosignatures(b, verifier, witnesses)
	switch {
	case err != nil:
		return err
	case len(seen) == 0:
		return errors.New("no cosignature of a configured witness")
	case tree.N > l.Size():
		return fmt.Errorf("%w: a witness saw %d entries, %d are there", ErrTampered, tree.N, l.Size())
	}
	if tree.N > 0 {
		h, err := tlog.TreeHash(tree.N, l)
		if err != nil {
			return err
		}
		if h != tree.Hash {
			return fmt.Errorf("%w: a witness saw another tree of %d entries", ErrTampered, tree.N)
		}
	}
	l.cosigning.Lock()
	defer l.cosigning.Unlock()
	kept, old, err := l.readCosigned(verifier)
	if err != nil {
		return err
	}
	if kept != nil && old.N > tree.N {
		return nil
	}
	all := note.VerifierList(append([]note.Verifier{verifier}, witnesses...)...)
	n, err := note.Open(b, all)
	if err != nil {
		return err
	}
	sigs := n.Sigs
	if kept != nil && old.N == tree.N {
		if k, err := note.Open(kept, all); err == nil && k.Text == n.Text {
			for _, s := range k.Sigs {
				if !hasSig(sigs, s) {
					sigs = append(sigs, s)
				}
			}
		}
	}
	out, err := note.Sign(&note.Note{Text: n.Text, Sigs: sigs}) // writes the signatures that are there
	if err != nil {
		return err
	}
	if len(out) > maxCheckpoint {
		return errors.New("too many cosignatures")
	}
	return durable.WriteFile(filepath.Join(l.dir, "cosigned"), out, 0o600)
}

func hasSig(sigs []note.Signature, s note.Signature) bool {
	for _, x := range sigs {
		if x.Name == s.Name && x.Hash == s.Hash {
			return true
		}
	}
	return false
}

// checkCosigned compares the log with what a witness saw.
func (l *Log) checkCosigned(verifier note.Verifier) error {
	b, tree, err := l.readCosigned(verifier)
	if err != nil || b == nil {
		return err
	}
	return l.checkHead(tree)
}
