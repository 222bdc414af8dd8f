package fscrypt

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/trusttree/trusttree/fscrypt/kernel"
)

// Names in a kernel mode volume.
const (
	treeDir    = "tree"            // below the volume's directory: what the kernel encrypts
	nextDir    = "tree.next"       // beside it while Rotate runs: its copy, then what it was
	anchorFile = ".fscrypt-anchor" // below treeDir: shows that it is the one created
)

// lockPoll is how long Lock waits before it asks the kernel again.
const lockPoll = 50 * time.Millisecond

// kernelInfo says what the encrypted directory is. It is kept in the encrypted
// part of the header.
type kernelInfo struct {
	Contents  kernel.Mode `json:"contents"`
	Filenames kernel.Mode `json:"filenames"`
	// Key is what the kernel's key is derived from, in a volume that was
	// rotated; private.Stable in others.
	Key []byte `json:"key,omitempty"`
	// Next and Old are identifiers of kernel keys: of the copy that Rotate is
	// making, and of what it was made of. There is one of them at most.
	Next []byte `json:"next,omitempty"`
	Old  []byte `json:"old,omitempty"`
}

func (i *kernelInfo) check() error {
	bad := func(b []byte, size int) bool { return len(b) != 0 && len(b) != size }
	if i != nil && (bad(i.Key, secretSize) || bad(i.Next, len(kernel.Identifier{})) || bad(i.Old, len(kernel.Identifier{})) || (i.Next != nil && i.Old != nil)) {
		return fmt.Errorf("header: %w", ErrTampered)
	}
	return nil
}

// rotating reports whether a rotation has begun and not ended.
func (i *kernelInfo) rotating() bool { return i != nil && (i.Next != nil || i.Old != nil) }

// tree is the open encrypted directory. While root and dir are open they keep
// the key in use; control is outside of it.
type tree struct {
	name    string // treeDir or nextDir
	control *os.File
	root    *os.Root
	dir     *os.File
	id      kernel.Identifier
	policy  kernel.Policy
}

// KernelStatus describes the encrypted directory of a kernel mode volume.
type KernelStatus struct {
	Path       string `json:"path"`
	Contents   string `json:"contents"`
	Filenames  string `json:"filenames"`
	Identifier string `json:"identifier"`
	// Key is "present", "absent" or "incompletely removed": open files can
	// still be read.
	Key string `json:"key"`
	// SlowCipher says that the directory is under AES and the kernel runs it
	// in portable C, which is 10 to 100 times slower than the processor's
	// instructions.
	SlowCipher bool `json:"slow_cipher"`
}

func kernelError(err error) error {
	if errors.Is(err, kernel.ErrUnsupported) {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}

func (v *Volume) kernelInfo() *kernelInfo {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.private.Kernel
}

// treeSecret is what the keys of the directory in force are derived from.
func (v *Volume) treeSecret() *Secret {
	if v.treeKey != nil {
		return v.treeKey
	}
	return v.stable
}

// policyKey is what the kernel gets.
func (v *Volume) policyKey(s *Secret) ([]byte, error) {
	return derive(s, kernel.KeySize, []byte(v.header.UUID), "kernel policy")
}

func (v *Volume) anchor(s *Secret) ([]byte, error) {
	key, err := derive(s, 32, []byte(v.header.UUID), "kernel anchor")
	if err != nil {
		return nil, err
	}
	defer clear(key)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(v.header.Label))
	return mac.Sum(nil), nil
}

// openTree opens the directory name once; what is put at its path later is
// not seen.
func openTree(dir, name string) (*tree, error) {
	top, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer top.Close()
	fi, err := top.Lstat(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrWrongVolume, err)
	}
	if !fi.IsDir() {
		return nil, fmt.Errorf("%s is not a directory: %w", name, ErrWrongVolume)
	}
	t := &tree{name: name}
	if t.control, err = top.Open("."); err != nil {
		return nil, err
	}
	if t.root, err = top.OpenRoot(name); err != nil {
		return nil, errors.Join(err, t.control.Close())
	}
	if t.dir, err = t.root.Open("."); err != nil {
		return nil, errors.Join(err, t.root.Close(), t.control.Close())
	}
	return t, nil
}

// leave lets go of the directory, but not of control.
func (t *tree) leave() error {
	if t.root == nil {
		return nil
	}
	err := errors.Join(t.dir.Close(), t.root.Close())
	t.dir, t.root = nil, nil
	return err
}

// drop lets go of the directory and takes the key away.
func (t *tree) drop() error {
	err := t.leave()
	_, rerr := kernel.RemoveKey(t.control, t.id)
	return errors.Join(err, rerr, t.control.Close())
}

func (t *tree) close() error { return errors.Join(t.leave(), t.control.Close()) }

// formatKernel makes the encrypted directory.
func (v *Volume) formatKernel(ctx context.Context) (err error) {
	if err := os.Mkdir(filepath.Join(v.dir, treeDir), 0o700); err != nil {
		return err
	}
	t, err := openTree(v.dir, treeDir)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.drop(), os.RemoveAll(filepath.Join(v.dir, treeDir)))
		}
	}()
	if err := v.encrypt(t, v.stable); err != nil {
		return err
	}
	if err := kernel.Sync(t.dir); err != nil {
		return err
	}
	v.private.Kernel = &kernelInfo{Contents: t.policy.Contents, Filenames: t.policy.Filenames}
	if err := v.setTree(t); err != nil {
		return err
	}
	if slow(t.policy.Contents) {
		v.event(ctx, slog.LevelWarn, "fscrypt.kernel.slow")
	}
	return nil
}

// encrypt encrypts an empty directory and puts the anchor there.
func (v *Volume) encrypt(t *tree, s *Secret) (err error) {
	if err := v.addKey(t, s); err != nil {
		return err
	}
	if t.policy, err = kernel.Probe(t.dir, t.id); err != nil {
		return kernelError(err)
	}
	if err := kernel.SetPolicy(t.dir, t.policy); err != nil {
		return kernelError(err)
	}
	anchor, err := v.anchor(s)
	if err != nil {
		return err
	}
	return t.root.WriteFile(anchorFile, anchor, 0o400)
}

// slow reports whether the kernel runs a mode in portable C that has
// instructions for it elsewhere. Adiantum is made for portable C.
func slow(m kernel.Mode) bool { return m == kernel.AES256XTS && kernel.Generic("xts(aes)") }

func (v *Volume) addKey(t *tree, s *Secret) error {
	key, err := v.policyKey(s)
	if err != nil {
		return err
	}
	defer clear(key)
	if t.id, err = kernel.KeyIdentifier(key); err != nil {
		return err
	}
	_, err = kernel.AddKey(t.dir, key)
	return kernelError(err)
}

// openKernel gives the kernel its key, once the directory has shown that it is
// the one that was created: first its policy, and with the key its anchor.
func (v *Volume) openKernel() (err error) {
	info := v.kernelInfo()
	if info == nil {
		return ErrTampered
	}
	key, err := v.policyKey(v.treeSecret())
	if err != nil {
		return err
	}
	id, err := kernel.KeyIdentifier(key)
	clear(key)
	if err != nil {
		return err
	}
	t, err := v.findTree(info, id)
	if err != nil {
		return err
	}
	added := false
	defer func() {
		if err != nil {
			if added {
				err = errors.Join(err, t.drop())
			} else {
				err = errors.Join(err, t.close())
			}
		}
	}()
	if err := v.addKey(t, v.treeSecret()); err != nil {
		return err
	}
	added = true
	want, err := v.anchor(v.treeSecret())
	if err != nil {
		return err
	}
	f, err := t.root.Open(anchorFile)
	if err != nil {
		return fmt.Errorf("anchor: %w: %w", ErrWrongVolume, err)
	}
	defer f.Close()
	got, err := io.ReadAll(io.LimitReader(f, int64(len(want))+1))
	if err != nil {
		return err
	}
	if !hmac.Equal(got, want) {
		return fmt.Errorf("anchor does not authenticate: %w", ErrWrongVolume)
	}
	return v.setTree(t)
}

// findTree opens the directory that is under a key. Where the power was cut
// after Rotate had put its copy in force, the names may not be exchanged yet.
func (v *Volume) findTree(info *kernelInfo, id kernel.Identifier) (*tree, error) {
	t, err := openTree(v.dir, treeDir)
	if err != nil {
		return nil, err
	}
	t.policy, err = kernel.GetPolicy(t.dir)
	if err == nil && info.Old != nil && bytes.Equal(t.policy.Identifier[:], info.Old) {
		if err := t.close(); err != nil {
			return nil, err
		}
		if t, err = openTree(v.dir, nextDir); err != nil {
			return nil, err
		}
		t.policy, err = kernel.GetPolicy(t.dir)
	}
	switch {
	case errors.Is(err, kernel.ErrNoPolicy), errors.Is(err, kernel.ErrOtherPolicy), errors.Is(err, kernel.ErrUnsupported):
		err = fmt.Errorf("%w: %w", ErrWrongVolume, err)
	case err == nil && t.policy != kernel.Policy{Contents: info.Contents, Filenames: info.Filenames, Identifier: id}:
		err = fmt.Errorf("%s is encrypted under another key or in another way: %w", t.dir.Name(), ErrWrongVolume)
	}
	if err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

// setTree makes a directory the volume's, unless it was shut meanwhile.
func (v *Volume) setTree(t *tree) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.locked != nil && t != nil {
		return v.locked
	}
	v.tree = t
	return nil
}

// Path returns the encrypted directory of a kernel mode volume: any program
// may use it while the volume is open. It is empty in portable mode.
func (v *Volume) Path() string {
	if !v.kernelMode {
		return ""
	}
	return filepath.Join(v.dir, treeDir)
}

// lockKernel takes the key away and polls until the kernel has dropped it.
func (v *Volume) lockKernel(ctx context.Context) error {
	t := v.tree
	if t == nil {
		return nil
	}
	if err := kernel.Sync(t.control); err != nil {
		return err
	}
	// The open directory itself would keep the key in use.
	v.mu.Lock()
	err := t.leave()
	v.mu.Unlock()
	if err != nil {
		return err
	}
	if err := v.evict(ctx, t.control, t.id); err != nil {
		return err
	}
	return errors.Join(v.setTree(nil), t.control.Close())
}

// evict takes a key away and polls until the kernel has dropped it.
func (v *Volume) evict(ctx context.Context, control *os.File, id kernel.Identifier) error {
	for {
		if _, err := kernel.RemoveKey(control, id); err != nil {
			return err
		}
		state, err := kernel.Status(control, id)
		if err != nil || state == kernel.Absent {
			return err
		}
		select {
		case <-ctx.Done():
			users := kernel.Users(v.Path(), 16)
			return errors.Join(&BusyError{Open: len(users), Paths: users}, ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}

// dropKernelKey takes the key away without waiting for open files: Lock does.
func (v *Volume) dropKernelKey() {
	v.mu.Lock()
	t := v.tree
	var r kernel.Removal
	var err error
	if t != nil {
		err = t.leave()
		var rerr error
		r, rerr = kernel.RemoveKey(t.control, t.id)
		if err = errors.Join(err, rerr); err == nil && !r.Busy {
			err = t.control.Close()
			v.tree = nil
		}
	}
	v.mu.Unlock()
	if err != nil || r.Busy {
		v.event(context.Background(), slog.LevelError, "fscrypt.kernel.busy", slog.Any("users", kernel.Users(v.Path(), 16)), slog.Any("error", err))
	}
}

func (v *Volume) kernelStatus() *KernelStatus {
	s := &KernelStatus{Path: v.Path(), Key: "absent"}
	if i := v.private.Kernel; i != nil {
		s.SlowCipher = slow(i.Contents)
	}
	t := v.tree
	if t == nil && (v.detached || v.moving) {
		s.Key = "present"
	}
	if t == nil {
		return s
	}
	s.Contents, s.Filenames, s.Identifier = t.policy.Contents.String(), t.policy.Filenames.String(), t.id.String()
	switch state, err := kernel.Status(t.control, t.id); {
	case err != nil:
		s.Key = err.Error()
	case state == kernel.Present:
		s.Key = "present"
	case state == kernel.IncompletelyGone:
		s.Key = "incompletely removed"
	}
	return s
}

// kernelFS is the encrypted directory for FS, without its anchor's protection:
// the kernel's encryption does not authenticate contents.
func (v *Volume) kernelFS() fs.FS {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.tree == nil || v.tree.root == nil {
		return os.DirFS(os.DevNull)
	}
	return v.tree.root.FS()
}

// portable refuses what a kernel mode volume does by its directory.
func (v *Volume) portable() error {
	if v.kernelMode {
		return fmt.Errorf("a kernel mode volume is used through its directory %s: %w", v.Path(), ErrUnsupported)
	}
	return nil
}

// destroyTree locks the encrypted directory and removes what it holds, and
// what a rotation left beside it.
func (v *Volume) destroyTree(ctx context.Context) error {
	if !v.kernelMode {
		return nil
	}
	if err := v.lockKernel(ctx); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(filepath.Join(v.dir, treeDir)), os.RemoveAll(filepath.Join(v.dir, nextDir)))
}
