package fscrypt_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"filippo.io/age"

	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/fscrypt/internal/journal"
	"github.com/trusttree/trusttree/fscrypt/internal/wire"
)

func seed(f *testing.F, name string) {
	b, err := os.ReadFile(filepath.Join(golden, ".fscrypt", name))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
}

// FuzzHeader parses headers that nothing has authenticated.
func FuzzHeader(f *testing.F) {
	seed(f, "header.a")
	f.Fuzz(func(t *testing.T, b []byte) { _ = fscrypt.ParseHeader(b) })
}

// FuzzSlots unwraps slots from a hostile disk.
func FuzzSlots(f *testing.F) {
	f.Add(`{"age":"YWdlLWVuY3J5cHRpb24="}`)
	f.Add(`{"parts":[{"id":"a","type":"passphrase","data":{"age":""}},{"id":"b","type":"remote","data":{"service":"s","masked":""}}]}`)
	f.Add(`{"parent":"000b","public":"","private":"","bank":"SHA-256","latch":15,"after":["00"]}`)
	rec := &fscrypt.Recovery{}
	if id, err := age.GenerateX25519Identity(); err == nil {
		rec.Identities = []age.Identity{id}
	}
	tpm := &fscrypt.TPM{Policies: []fscrypt.BootPolicy{imagePCRs("x")}}
	remote := &fscrypt.Remote{Service: "s"}
	f.Fuzz(func(t *testing.T, data string) {
		for _, p := range []fscrypt.Protector{rec, tpm, remote, fscrypt.All(rec, remote)} {
			s, err := p.Unwrap(t.Context(), fscrypt.Slot{ID: "x", Type: p.Type(), Data: json.RawMessage(data)}, fscrypt.Binding{})
			if err == nil || s != nil {
				t.Fatal("a slot from nowhere opened")
			}
		}
	})
}

// FuzzJournal replays logs that were changed on the disk: what it returns is a
// prefix of what was written, or an error.
func FuzzJournal(f *testing.F) {
	key, ctx := make([]byte, 32), []byte("volume")
	d := newCrashFS()
	file, err := d.Create("log")
	if err != nil {
		f.Fatal(err)
	}
	l, err := journal.New(file, key, ctx)
	if err != nil {
		f.Fatal(err)
	}
	written := [][]byte{[]byte("first record"), {}, bytes.Repeat([]byte("x"), 700)}
	for _, r := range written {
		if err := l.Add(r, false); err != nil {
			f.Fatal(err)
		}
	}
	if err := l.Sync(); err != nil {
		f.Fatal(err)
	}
	whole := d.files["log"].data
	f.Add(whole, 0, byte(0))
	f.Add(whole[:100], 3, byte(1))
	f.Fuzz(func(t *testing.T, b []byte, at int, x byte) {
		for _, data := range [][]byte{bytes.Clone(b), bytes.Clone(whole)} {
			if at >= 0 && at < len(data) {
				data[at] ^= x
			}
			c := newCrashFS()
			file, _ := c.Create("log")
			c.files["log"].data = data
			n := 0
			_, _ = journal.Replay(file, key, ctx, func(rec []byte) error {
				if n >= len(written) || !bytes.Equal(rec, written[n]) {
					t.Fatalf("record %d was never written: %q", n, rec)
				}
				n++
				return nil
			})
		}
	})
}

// FuzzRelease parses what node and service say to each other.
func FuzzRelease(f *testing.F) {
	f.Add([]byte(`{"version":1,"op":"release","volume":"v","label":"l","slot":"s","key":"AAAA"}`))
	f.Add([]byte(`{"version":1,"status":"ok","share":"AAAA","lease_seconds":60}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = wire.ParseRequest(b)
		if r, err := wire.ParseResponse(b); err == nil && r.LeaseSeconds < 0 {
			t.Fatal("negative lease")
		}
	})
}
