package fscrypt

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
)

// Keep holds what TPMs unsealed in this boot, in a file in memory, so that a
// process that is started anew opens its volumes without a reboot although the
// latch is closed. Give File to the service manager (systemd's file descriptor
// store) and, in the next process, what comes back to NewKeep; set TPM.Keep
// in both.
//
// It holds a TPM's part alone: a volume under All(TPM, Remote) asks the cloud
// anew. Volume.Lock and Destroy erase the volume's part, Volume.Detach and the
// end of a lease do not, a reboot erases all. Who gets the file, as root does,
// can unseal as if there were no latch: leave TPM.Keep out where a restart may
// cost a reboot. Its methods are safe for concurrent use.
type Keep struct {
	f  *os.File
	mu sync.Mutex
	// mem is the file: a mark with the version, then keepSlots entries.
	mem  []byte
	free func()
}

// The file: entries of volume (16 bytes), SHA-256 of the sealed object, secret.
const (
	keepMark  = "trusttree fscrypt keep v1\n"
	keepStart = 64
	keepEntry = 16 + sha256.Size + secretSize
	keepSlots = 50
	keepSize  = 4096
)

// NewKeep uses the file that an earlier process of this boot had from File, or
// an empty one on a tmpfs that only this user can read. Nil makes a new one in
// memory that, where the kernel allows, is never swapped out (memfd_secret). A
// file on a disk is refused: ErrUnsupported. The Keep takes f over.
func NewKeep(f *os.File) (k *Keep, err error) {
	defer boundary("keep", &err)
	if f == nil {
		if f, err = secretFile(); err != nil {
			return nil, err
		}
	}
	mem, free, err := mapFile(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	k = &Keep{f: f, mem: mem, free: free}
	switch mark := mem[:keepStart]; {
	case bytes.Equal(mark, make([]byte, keepStart)):
		copy(mem, keepMark)
	case !bytes.HasPrefix(mark, []byte(keepMark)):
		return nil, errors.Join(fmt.Errorf("%s is not a keep of this version: %w", f.Name(), ErrUnsupported), k.Close())
	}
	return k, nil
}

// File is the file in memory, for the service manager. It belongs to the Keep.
func (k *Keep) File() *os.File { return k.f }

// Close lets go of the file; what it holds stays for who else has it.
func (k *Keep) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.mem == nil {
		return nil
	}
	k.free()
	k.mem = nil
	return k.f.Close()
}

// keepID names a sealed object at its place.
func keepID(b Binding, d *tpmData) (volume []byte, id [sha256.Size]byte, err error) {
	volume, err = hex.DecodeString(b.Volume)
	if err == nil && len(volume) != 16 {
		err = errors.New("not a volume")
	}
	h := sha256.New()
	for _, p := range [][]byte{volume, []byte(b.Label), []byte(b.Slot), d.Public, d.Private} {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(p))))
		h.Write(p)
	}
	h.Sum(id[:0])
	return volume, id, err
}

// each calls f with every entry; nil Keeps have none.
func (k *Keep) each(f func(volume, id, secret []byte) bool) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.mem == nil {
		return
	}
	for i := range keepSlots {
		e := k.mem[keepStart+i*keepEntry:][:keepEntry]
		if !f(e[:16], e[16:16+sha256.Size], e[16+sha256.Size:]) {
			return
		}
	}
}

// find returns what was kept of a sealed object, or nil.
func (k *Keep) find(b Binding, d *tpmData) (s *Secret) {
	volume, id, err := keepID(b, d)
	if err != nil {
		return nil
	}
	k.each(func(v, i, secret []byte) bool {
		if subtle.ConstantTimeCompare(v, volume)&subtle.ConstantTimeCompare(i, id[:]) == 0 {
			return true
		}
		s = newSecret()
		copy(s.mem.b, secret)
		return false
	})
	return s
}

// put keeps a secret. Where every entry is taken it does not: the volume opens
// after a reboot.
func (k *Keep) put(b Binding, d *tpmData, s *Secret) error {
	volume, id, err := keepID(b, d)
	if err != nil {
		return err
	}
	full := true
	err = s.Use(func(key []byte) error {
		k.each(func(v, i, secret []byte) bool {
			if !bytes.Equal(v, make([]byte, 16)) && !bytes.Equal(i, id[:]) {
				return true
			}
			// A process that is killed here leaves an entry that fits nothing.
			copy(secret, key)
			copy(i, id[:])
			copy(v, volume)
			full = false
			return false
		})
		return nil
	})
	if err == nil && full {
		err = errors.New("the keep is full or closed")
	}
	return err
}

// drop erases what is kept of a volume, except the sealed objects listed.
func (k *Keep) drop(uuid string, but map[[sha256.Size]byte]bool) {
	volume, err := hex.DecodeString(uuid)
	if err != nil {
		return
	}
	k.each(func(v, i, secret []byte) bool {
		if bytes.Equal(v, volume) && !but[[sha256.Size]byte(i)] {
			clear(v)
			clear(i)
			clear(secret)
		}
		return true
	})
}

// keepIDs lists the sealed objects of slots.
func keepIDs(h *header, slots []Slot, within string, ids map[[sha256.Size]byte]bool) {
	for i, s := range slots {
		id := s.ID
		if within != "" {
			id = fmt.Sprintf("%s.%d", within, i) // as All names its parts
		}
		var a allData
		var t tpmData
		if strictJSON(s.Data, &a) == nil {
			keepIDs(h, a.Parts, id, ids)
		} else if strictJSON(s.Data, &t) == nil {
			if _, key, err := keepID(Binding{Volume: h.UUID, Label: h.Label, Slot: id}, &t); err == nil {
				ids[key] = true
			}
		}
	}
}

// useKeeps notes the Keeps of protectors, for Lock to erase what they hold.
func (v *Volume) useKeeps(ps []Protector) {
	for _, t := range tpmsOf(ps...) {
		if t.Keep != nil {
			v.keeps[t.Keep] = true
		}
	}
}

// keepAll keeps what was noted for slots that are in force now, and erases
// what is kept of slots that are no more.
func (v *Volume) keepAll(ctx context.Context, n *notes) {
	for _, k := range n.kept {
		if err := k.keep.put(k.b, k.d, k.secret); err != nil {
			v.event(ctx, slog.LevelWarn, "fscrypt.keep.failed", slog.String("reason", err.Error()))
		}
	}
	n.forget()
	ids := map[[sha256.Size]byte]bool{}
	keepIDs(v.header, v.header.Slots, "", ids)
	for k := range v.keeps {
		k.drop(v.header.UUID, ids)
	}
}

// dropKeeps erases all that is kept of the volume.
func (v *Volume) dropKeeps() {
	for k := range v.keeps {
		k.drop(v.header.UUID, nil)
	}
}

// kept is a secret that is kept once its slot is known to be in force.
type kept struct {
	keep   *Keep
	b      Binding
	d      *tpmData
	secret *Secret
}

// note clones a secret, for Volume.keepAll.
func (n *notes) note(k *Keep, b Binding, d *tpmData, s *Secret) error {
	if k == nil || n == nil {
		return nil
	}
	c, err := s.clone()
	if err == nil {
		b.notes = nil
		n.kept = append(n.kept, kept{k, b, d, c})
	}
	return err
}

// forget erases what was noted.
func (n *notes) forget() {
	for _, k := range n.kept {
		k.secret.Erase()
	}
	n.kept = nil
}
