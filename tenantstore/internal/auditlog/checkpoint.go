package auditlog

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// OpenCheckpoint verifies a checkpoint (C2SP tlog-checkpoint: origin, size,
// root hash, Ed25519 signature in a signed note) and returns what it says.
func OpenCheckpoint(b []byte, verifier note.Verifier) (origin string, tree tlog.Tree, err error) {
	if len(b) > maxCheckpoint {
		return "", tree, errors.New("checkpoint is too long")
	}
	n, err := note.Open(b, note.VerifierList(verifier))
	if err != nil {
		return "", tree, err
	}
	lines := strings.SplitN(n.Text, "\n", 4)
	if len(lines) < 4 || lines[0] == "" {
		return "", tree, errors.New("checkpoint has not three lines")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || strconv.FormatInt(size, 10) != lines[1] {
		return "", tree, errors.New("checkpoint has no size")
	}
	if tree.Hash, err = tlog.ParseHash(lines[2]); err != nil {
		return "", tree, errors.New("checkpoint has no root hash")
	}
	tree.N = size
	return lines[0], tree, nil
}
