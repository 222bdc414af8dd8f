package update

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/trusttree/trusttree/internal/durable"
)

// DownloadFile brings a target to the file of that name, whose directory must
// be there. A file that is the target already is left alone and nothing is
// fetched. Otherwise the content is fetched into a hidden file beside it,
// verified, made durable and renamed, so that a reader finds the old content
// or the new, whole. What a failing source, a cancelled ctx or a power cut left
// in the hidden file is continued by the next call; no file grows beyond the
// target's length. progress, which may be nil, is told how many bytes are
// there. Errors are those of Download, ErrNoSpace, and ErrBusy when another
// call is fetching the same file.
func (c *Client) DownloadFile(ctx context.Context, t *Target, name string, progress func(done, total int64)) error {
	if f, err := openRegular(name); err == nil {
		same := t.isFile(ctx, f)
		if err := f.Close(); err != nil {
			return fmt.Errorf("update: %w", err)
		}
		if same {
			return nil
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("update: target %s: %w", t.name, context.Cause(ctx))
	}
	part := t.partName(name)
	unlock, err := lockFile(part)
	if err != nil {
		return err
	}
	defer unlock()
	resumed, err := c.fillPart(ctx, t, part, progress)
	again := places(c.cfg.Images, t.files[0]) - 1
	if resumed {
		again++
	}
	for ; again > 0 && (errors.Is(err, ErrHash) || errors.Is(err, ErrTooLarge)); again-- {
		// What lay there was not the target's beginning: a power cut left
		// other bytes, or a mirror lied.
		if err = os.Truncate(part, 0); err == nil {
			_, err = c.fillPart(ctx, t, part, progress)
		}
	}
	for _, broken := range []error{ErrHash, ErrTooLarge, ErrServer, ErrNotInRepository} {
		if errors.Is(err, broken) {
			return errors.Join(err, durable.Remove(part))
		}
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return errors.Join(refuseErr(ErrNoSpace, name, err), durable.Remove(part))
	}
	if err != nil {
		return err
	}
	if err := durable.Rename(part, name); err != nil {
		return fmt.Errorf("update: target %s: %w", t.name, err)
	}
	return cleanParts(part)
}

func (t *Target) isFile(ctx context.Context, f *os.File) bool {
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() || fi.Size() != t.length {
		return false
	}
	return t.Verify(&ctxReader{ctx: ctx, r: f, c: f}) == nil
}

// partName is the hidden file of one target's content for one name.
func (t *Target) partName(name string) string {
	at := sha256.Sum256([]byte(filepath.Base(name)))
	content := sha256.New()
	for _, alg := range []string{"sha256", "sha512"} {
		content.Write(t.hashes[alg])
	}
	return filepath.Join(filepath.Dir(name), fmt.Sprintf(".%x.%x%s", at[:8], content.Sum(nil)[:8], partSuffix))
}

const partSuffix = ".part"

// cleanParts removes what was fetched of older contents for the same name.
func cleanParts(part string) error {
	entries, err := os.ReadDir(filepath.Dir(part))
	if err != nil {
		return fmt.Errorf("update: %w", err)
	}
	prefix := filepath.Base(part)[:18]
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) && strings.HasSuffix(e.Name(), partSuffix) && e.Type().IsRegular() {
			if err := os.Remove(filepath.Join(filepath.Dir(part), e.Name())); err != nil {
				return fmt.Errorf("update: %w", err)
			}
		}
	}
	return nil
}

// fillPart continues the hidden file to the target's end and verifies all of
// it. resumed says that something lay there.
func (c *Client) fillPart(ctx context.Context, t *Target, part string, progress func(done, total int64)) (resumed bool, err error) {
	f, err := os.OpenFile(part, os.O_RDWR, 0)
	if err != nil {
		return false, fmt.Errorf("update: %w", err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("update: %w", cerr)
		}
	}()
	v := t.verifier()
	n, err := io.CopyBuffer(onlyWriter{v}, &ctxReader{ctx: ctx, r: io.LimitReader(f, t.length+1), c: f}, make([]byte, chunk))
	if err == nil && n > t.length {
		v, n = t.verifier(), 0
		if err = f.Truncate(0); err == nil {
			_, err = f.Seek(0, io.SeekStart)
		}
	}
	if err != nil {
		return false, fmt.Errorf("update: target %s: %w", t.name, err)
	}
	if err := c.fetch(ctx, t, f, v, progress); err != nil {
		return n > 0, err
	}
	if err := f.Chmod(0o644); err != nil {
		return n > 0, fmt.Errorf("update: %w", err)
	}
	if err := f.Sync(); err != nil {
		return n > 0, fmt.Errorf("update: target %s: %w", t.name, err)
	}
	return n > 0, nil
}
