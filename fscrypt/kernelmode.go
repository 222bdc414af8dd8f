package fscrypt

import (
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
	anchorFile = ".fscrypt-anchor" // below treeDir: shows that it is the one created
)

// lockPoll is how long Lock waits before it asks the kernel again.
const lockPoll = 50 * time.Millisecond

// kernelInfo says what the encrypted directory is. It is kept in the encrypted
// part of the header.
type kernelInfo struct {
	Contents  kernel.Mode `json:"contents"`
	Filenames kernel.Mode `json:"filenames"`
}

// tree is the open encrypted directory. While root and dir are open they keep
// the key in use; control is outside of it.
type tree struct {
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

// policyKey is what the kernel gets. It stays the same for the life of the
// volume: the kernel can't encrypt a directory anew.
func (v *Volume) policyKey() ([]byte, error) {
	return derive(v.stable, kernel.KeySize, []byte(v.header.UUID), "kernel policy")
}

func (v *Volume) anchor() ([]byte, error) {
	key, err := derive(v.stable, 32, []byte(v.header.UUID), "kernel anchor")
	if err != nil {
		return nil, err
	}
	defer clear(key)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(v.header.Label))
	return mac.Sum(nil), nil
}

// openTree opens the directory once; what is put at its path later is not
// seen.
func openTree(dir string) (*tree, error) {
	top, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer top.Close()
	fi, err := top.Lstat(treeDir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrWrongVolume, err)
	}
	if !fi.IsDir() {
		return nil, fmt.Errorf("%s is not a directory: %w", treeDir, ErrWrongVolume)
	}
	t := new(tree)
	if t.control, err = top.Open("."); err != nil {
		return nil, err
	}
	if t.root, err = top.OpenRoot(treeDir); err != nil {
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
	t, err := openTree(v.dir)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.drop(), os.RemoveAll(filepath.Join(v.dir, treeDir)))
		}
	}()
	if err := v.addKey(t); err != nil {
		return err
	}
	if t.policy, err = kernel.Probe(t.dir, t.id); err != nil {
		return kernelError(err)
	}
	if err := kernel.SetPolicy(t.dir, t.policy); err != nil {
		return kernelError(err)
	}
	anchor, err := v.anchor()
	if err != nil {
		return err
	}
	if err := t.root.WriteFile(anchorFile, anchor, 0o400); err != nil {
		return err
	}
	if err := kernel.Sync(t.dir); err != nil {
		return err
	}
	v.private.Kernel = &kernelInfo{Contents: t.policy.Contents, Filenames: t.policy.Filenames}
	v.setTree(t)
	if slow(t.policy.Contents) {
		v.event(ctx, slog.LevelWarn, "fscrypt.kernel.slow")
	}
	return nil
}

// slow reports whether the kernel runs a mode in portable C that has
// instructions for it elsewhere. Adiantum is made for portable C.
func slow(m kernel.Mode) bool { return m == kernel.AES256XTS && kernel.Generic("xts(aes)") }

func (v *Volume) addKey(t *tree) error {
	key, err := v.policyKey()
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
func (v *Volume) openKernel(context.Context) (err error) {
	info := v.private.Kernel
	if info == nil {
		return ErrTampered
	}
	t, err := openTree(v.dir)
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
	key, err := v.policyKey()
	if err != nil {
		return err
	}
	id, err := kernel.KeyIdentifier(key)
	clear(key)
	if err != nil {
		return err
	}
	t.policy, err = kernel.GetPolicy(t.dir)
	switch {
	case errors.Is(err, kernel.ErrNoPolicy), errors.Is(err, kernel.ErrOtherPolicy), errors.Is(err, kernel.ErrUnsupported):
		return fmt.Errorf("%w: %w", ErrWrongVolume, err)
	case err != nil:
		return err
	case t.policy != kernel.Policy{Contents: info.Contents, Filenames: info.Filenames, Identifier: id}:
		return fmt.Errorf("%s is encrypted under another key or in another way: %w", t.dir.Name(), ErrWrongVolume)
	}
	if err := v.addKey(t); err != nil {
		return err
	}
	added = true
	want, err := v.anchor()
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
	v.setTree(t)
	return nil
}

func (v *Volume) setTree(t *tree) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.tree = t
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
	for {
		if _, err := kernel.RemoveKey(t.control, t.id); err != nil {
			return err
		}
		state, err := kernel.Status(t.control, t.id)
		if err != nil {
			return err
		}
		if state == kernel.Absent {
			v.setTree(nil)
			return t.control.Close()
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
	if t == nil && v.detached {
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

// destroyTree locks the encrypted directory and removes what it holds.
func (v *Volume) destroyTree(ctx context.Context) error {
	if v.tree == nil {
		return nil
	}
	if err := v.lockKernel(ctx); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(v.dir, treeDir))
}
