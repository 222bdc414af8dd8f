package repository

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/trusttree/trusttree/update/internal/delta"
	"github.com/trusttree/trusttree/update/manifest"
)

// addAids adds the block index and the patches of a part.
func (tx *Tx) addAids(part *manifest.Part, c Content) error {
	if !c.Index && len(c.PatchFrom) == 0 {
		return nil
	}
	src, ok := c.Reader.(io.ReadSeeker)
	if !ok || part.Opaque {
		return fmt.Errorf("repository: part %s: an index or patch needs a part that is not opaque and a reader that can seek", part.Name)
	}
	if c.Index {
		a, err := tx.addAid(part.Target+".index", src, func(w io.Writer) error { return delta.WriteIndex(w, src, part.Length) })
		if err != nil {
			return fmt.Errorf("repository: index of part %s: %w", part.Name, err)
		}
		part.Index = a
	}
	for i, old := range c.PatchFrom {
		h := sha256.New()
		if _, err := io.CopyBuffer(struct{ io.Writer }{h}, &ctxReader{tx.ctx, io.NewSectionReader(old, 0, old.Size())}, make([]byte, 256<<10)); err != nil {
			return fmt.Errorf("repository: base of a patch of part %s: %w", part.Name, err)
		}
		a, err := tx.addAid(fmt.Sprintf("%s.patch%d", part.Target, i), src, func(w io.Writer) error {
			return delta.WritePatch(w, old, old.Size(), &ctxReader{tx.ctx, src}, part.Length)
		})
		if err != nil {
			return fmt.Errorf("repository: patch of part %s: %w", part.Name, err)
		}
		a.From = fmt.Sprintf("%x", h.Sum(nil))
		part.Patches = append(part.Patches, *a)
	}
	return nil
}

// addAid writes an aid to a spool file and adds it as a target.
func (tx *Tx) addAid(name string, src io.Seeker, write func(io.Writer) error) (_ *manifest.Aid, err error) {
	if _, err := src.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	spool, err := os.CreateTemp("", "repository-*")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, spool.Close(), os.Remove(spool.Name())) }()
	if err := write(spool); err != nil {
		return nil, err
	}
	f, err := tx.add(name, spool, nil, tx.home)
	if err != nil {
		return nil, err
	}
	return &manifest.Aid{Target: name, Length: f.Length, SHA256: f.Hashes["sha256"].String()}, nil
}
