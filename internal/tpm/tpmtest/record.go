package tpmtest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"sync"

	"github.com/trusttree/trusttree/internal/softtpm"
)

// recordDir is where, with TRUSTTREE_RECORD=DIR, every TPM in this process
// writes down what it is told: one file of JSON lines each, from which
// internal/softtpm's tests replay the stream to swtpm. It is the only use of
// that variable, and these TPMs are only for tests.
const recordDir = "TRUSTTREE_RECORD"

// record returns a trace into a new file, or nil.
func record() (func(softtpm.Step), error) {
	dir := os.Getenv(recordDir)
	if dir == "" {
		return nil, nil
	}
	f, err := os.CreateTemp(dir, filepath.Base(os.Args[0])+"-*.jsonl")
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	return func(s softtpm.Step) {
		b, err := json.Marshal(s)
		if err != nil {
			panic(err) // bytes and numbers
		}
		mu.Lock()
		defer mu.Unlock()
		if _, err := f.Write(append(b, '\n')); err != nil {
			panic(err) // asked for, and cannot be done
		}
	}, nil
}
