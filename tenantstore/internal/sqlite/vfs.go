// Package sqlite is the embedded engine: one SQLite file for each instance,
// encrypted as a whole (file and write-ahead log) by Adiantum, a wide-block
// cipher, under the instance's own key. It needs no server and no cgo. It uses
// ncruces/go-sqlite3's low-level package: the database/sql driver would panic
// beside another SQLite in the same program.
package sqlite

import (
	"crypto/rand"
	"sync"

	"github.com/ncruces/go-sqlite3/vfs"
	"github.com/ncruces/go-sqlite3/vfs/adiantum"
	cipher "lukechampine.com/adiantum"
	"lukechampine.com/adiantum/hbsh"
)

// keyring hands keys to the encrypting VFS. A key never appears in SQL, in a
// URI or in SQLite's memory: the URI carries a random single-use token.
type keyring struct {
	name string // under which the VFS is registered

	mu   sync.Mutex
	keys map[string][]byte // by token
}

func newKeyring() *keyring {
	k := &keyring{name: "trusttree-" + rand.Text(), keys: map[string][]byte{}}
	vfs.Register(k.name, &walVFS{VFS: adiantum.Wrap(vfs.Find(""), k)})
	return k
}

func (k *keyring) close() { vfs.Unregister(k.name) }

// lend stores a copy of a key and returns the token and a function that takes
// the key back.
func (k *keyring) lend(key []byte) (string, func()) {
	token := rand.Text()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys[token] = append([]byte(nil), key...)
	return token, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if unused, ok := k.keys[token]; ok {
			clear(unused)
			delete(k.keys, token)
		}
	}
}

// KDF implements adiantum.HBSHCreator. The empty secret is that of temporary
// files, which get no key: they are refused.
func (k *keyring) KDF(token string) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	key := k.keys[token]
	delete(k.keys, token)
	return key
}

// HBSH implements adiantum.HBSHCreator.
func (k *keyring) HBSH(key []byte) *hbsh.HBSH {
	if len(key) != 32 {
		return nil
	}
	return cipher.New(key) // which keeps key for as long as the file is open
}
