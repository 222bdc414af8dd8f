package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/trusttree/trusttree/examples/wire"
)

// The last number of a stream that was delivered is kept twice, in the files seq
// and seq-copy of its spool, each with a checksum. A number that was delivered
// must not be taken as new: without the number, and without a batch that waits
// and would tell, numbered records are refused, and nothing else is.
const (
	seqName  = "seq"
	copyName = "seq-copy"
)

// seqLine is what a file holds: the number and its checksum.
func seqLine(seq uint64) string {
	sum := sha256.Sum256([]byte("trusttree spool seq v2 " + strconv.FormatUint(seq, 10)))
	return fmt.Sprintf("%d %s\n", seq, hex.EncodeToString(sum[:8]))
}

// errSeq says that a file does not hold what was written.
var errSeq = errors.New("damaged: it is no number with its checksum")

// readSeqFile reads one file. plain allows a number alone, as version 1 wrote
// it, and as an operator may.
func readSeqFile(name string, plain bool) (uint64, error) {
	text, err := wire.ReadCapped(name, 64)
	if err != nil {
		return 0, err
	}
	number, _, sum := strings.Cut(string(text), " ")
	seq, err := strconv.ParseUint(strings.TrimSpace(number), 10, 64)
	if err != nil || (sum && string(text) != seqLine(seq)) || (!sum && !plain) {
		return 0, errSeq
	}
	return seq, nil
}

// readSeq returns the last number that was delivered, and the names of damaged
// files, which it sets aside. An error says that the number is lost.
func readSeq(dir string) (last uint64, damaged []string, err error) {
	file, backup := filepath.Join(dir, seqName), filepath.Join(dir, copyName)
	_, err = os.Lstat(backup)
	found := false
	for _, f := range []struct {
		name  string
		plain bool // before there were two there was a number alone
	}{{file, errors.Is(err, fs.ErrNotExist)}, {backup, false}} {
		seq, err := readSeqFile(f.name, f.plain)
		switch {
		case err == nil:
			last, found = max(last, seq), true
		case !errors.Is(err, fs.ErrNotExist):
			damaged = append(damaged, fmt.Sprintf("%s: %v", f.name, err))
			_ = os.Rename(f.name, f.name+".bad") // else it is found again
		}
	}
	if found {
		if len(damaged) > 0 {
			_ = writeSeq(dir, last) // a disk that is full now has room for it with the next delivery
		}
		return last, damaged, nil
	}
	for _, name := range []string{file, backup} { // of this start, or of one before it
		if _, serr := os.Lstat(name + ".bad"); serr == nil {
			return 0, damaged, fmt.Errorf("%s is damaged, so nobody knows which numbers were delivered: write the last number that the sensor knows to be acknowledged into %s and restart the node", name+".bad", file)
		}
	}
	if len(damaged) > 0 { // a disk that can't be written
		return 0, damaged, errors.New(damaged[0])
	}
	return 0, nil, nil
}

// writeSeq keeps a number, first in the copy: of a write that a cut ended, one
// of the two is whole.
func writeSeq(dir string, seq uint64) error {
	for _, name := range []string{copyName, seqName} {
		if err := writeFile(filepath.Join(dir, name), []byte(seqLine(seq))); err != nil {
			return err
		}
	}
	return nil
}
