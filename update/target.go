package update

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"golang.org/x/time/rate"

	"github.com/trusttree/trusttree/update/internal/tufmeta"
)

// Target is a file that trusted metadata lists. Only Client.Target makes one.
type Target struct {
	name   string
	length int64
	hashes map[string][]byte // sha256, sha512
	custom []byte
	files  []string // where it lies in the repository, best first
}

// Name returns the target's name.
func (t *Target) Name() string { return t.name }

// Length returns the signed length in bytes.
func (t *Target) Length() int64 { return t.length }

// Custom returns the signed custom field, which may be empty.
func (t *Target) Custom() []byte { return append([]byte(nil), t.custom...) }

// Verify reads r to its end and returns ErrHash unless it is this target.
func (t *Target) Verify(r io.Reader) error {
	v := t.verifier()
	if _, err := io.CopyBuffer(v, io.LimitReader(r, t.length+1), make([]byte, chunk)); err != nil {
		return fmt.Errorf("update: read %s: %w", t.name, err)
	}
	return v.check()
}

type verifier struct {
	t      *Target
	hashes map[string]hash.Hash
	n      int64
}

func (t *Target) verifier() *verifier {
	v := &verifier{t: t, hashes: map[string]hash.Hash{}}
	for alg := range t.hashes {
		v.hashes[alg] = algorithms[alg]()
	}
	return v
}

var algorithms = map[string]func() hash.Hash{"sha256": sha256.New, "sha512": sha512.New}

func (v *verifier) Write(p []byte) (int, error) {
	for _, h := range v.hashes {
		h.Write(p)
	}
	v.n += int64(len(p))
	return len(p), nil
}

func (v *verifier) check() error {
	if v.n != v.t.length {
		return refuse(ErrHash, v.t.name, "%d bytes, want %d", v.n, v.t.length)
	}
	for alg, h := range v.hashes {
		if got := h.Sum(nil); subtle.ConstantTimeCompare(got, v.t.hashes[alg]) != 1 {
			return refuse(ErrHash, v.t.name, "%s is %x, want %x", alg, got, v.t.hashes[alg])
		}
	}
	return nil
}

func newTarget(name string, f *metadata.TargetFiles, consistent bool) (*Target, error) {
	if err := tufmeta.CheckTargetName(name); err != nil {
		return nil, refuseErr(ErrMalformed, "target", err)
	}
	t := &Target{name: name, length: f.Length, hashes: map[string][]byte{}}
	if f.Custom != nil {
		t.custom = *f.Custom
	}
	for _, alg := range []string{"sha256", "sha512"} {
		sum, ok := f.Hashes[alg]
		if !ok {
			continue
		}
		if len(sum) != algorithms[alg]().Size() {
			return nil, refuse(ErrMalformed, "target "+name, "%s of %d bytes", alg, len(sum))
		}
		t.hashes[alg] = sum
		if consistent {
			t.files = append(t.files, "targets/"+tufmeta.TargetName(name, hex.EncodeToString(sum)))
		}
	}
	if !consistent {
		t.files = []string{"targets/" + name}
	}
	if len(t.hashes) == 0 {
		return nil, refuse(ErrMalformed, "target "+name, "no hash of a known algorithm")
	}
	return t, nil
}

// Target looks a target up in the trusted metadata, fetching delegated roles as
// needed. Call Refresh first. It returns ErrNotInRepository when no trusted
// role lists the target.
func (c *Client) Target(ctx context.Context, name string) (*Target, error) {
	done, err := c.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	trust, _, err := c.current()
	if err != nil {
		return nil, err
	}
	return trust.target(ctx, name)
}

func (t *trusted) target(ctx context.Context, name string) (*Target, error) {
	f, err := t.lookup(ctx, name)
	if err != nil {
		return nil, err
	}
	return newTarget(name, f, t.Root.Signed.ConsistentSnapshot)
}

// Download writes a target's content to w and verifies it on the way. Bytes
// reach w before they are verified: on an error discard what was written.
func (c *Client) Download(ctx context.Context, t *Target, w io.Writer) error {
	return c.fetch(ctx, t, w, t.verifier(), nil)
}

// fetch writes what comes after the first v.n bytes of a target to w and v, and
// verifies all of it.
func (c *Client) fetch(ctx context.Context, t *Target, w io.Writer, v *verifier, progress func(done, total int64)) error {
	d := download{src: c.cfg.Images, names: t.files, length: t.length, off: v.n, limits: c.cfg.Limits, check: v.check}
	return d.run(ctx, func(p []byte, _ int64) error {
		if _, err := w.Write(p); err != nil {
			return err
		}
		if _, err := v.Write(p); err != nil {
			return err
		}
		if progress != nil {
			progress(v.n, t.length)
		}
		return nil
	})
}

// download fetches one file of known length from an offset on, resuming after
// failures of the source.
type download struct {
	src    Source
	names  []string // alternative names of the same content
	length int64
	off    int64 // where to start, and where it stands
	limits Limits
	check  func() error  // of the whole, once all of it is there; nil for a later one
	from   io.ReadCloser // what it came from last
}

// sinkError is an error of where the bytes go, not of where they come from.
type sinkError struct{ error }

func (e sinkError) Unwrap() error { return e.error }

func isSink(err error) bool {
	var s sinkError
	return errors.As(err, &s)
}

func (d *download) run(ctx context.Context, sink func(p []byte, off int64) error) error {
	var limiter *rate.Limiter
	if d.limits.Rate > 0 {
		limiter = rate.NewLimiter(rate.Limit(d.limits.Rate), chunk)
	}
	buf := make([]byte, chunk)
	start := d.off
	for failures, mark := 0, d.off; ; {
		before := d.off
		err := d.once(ctx, buf, limiter, sink)
		if err == nil && d.check != nil {
			if err = d.check(); err != nil {
				passOver(d.from)
				return err
			}
		}
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("update: fetch %s: %w", d.names[0], context.Cause(ctx))
		}
		if errors.Is(err, fs.ErrNotExist) && len(d.names) > 1 {
			d.names = d.names[1:]
			continue
		}
		if isSink(err) || errors.Is(err, ErrTooLarge) || errors.Is(err, ErrServer) || errors.Is(err, ErrRedirect) {
			return err
		}
		if absent(err) {
			return refuse(ErrNotInRepository, d.names[0], "signed metadata lists it, but the file is not there")
		}
		if d.off < before+leastProgress {
			passOver(d.from)
		}
		if d.off >= mark+leastProgress { // a few bytes for each request are no progress
			failures, mark = 0, d.off
		}
		if failures++; failures >= d.limits.Attempts {
			if r := new(RefusedError); d.off > start && d.off < mark+leastProgress && failures > 1 {
				return &RefusedError{Reason: ErrSlow, What: d.names[0], Detail: fmt.Sprintf("%d bytes in %d requests", d.off-mark, failures), Err: err}
			} else if errors.As(err, &r) {
				return err
			}
			return refuseErr(ErrUnavailable, d.names[0], err)
		}
		if err := sleep(ctx, retryPause<<failures); err != nil {
			return fmt.Errorf("update: fetch %s: %w", d.names[0], err)
		}
	}
}

func (d *download) once(ctx context.Context, buf []byte, limiter *rate.Limiter, sink func(p []byte, off int64) error) error {
	if d.off == d.length && d.off > 0 {
		return nil
	}
	r, err := d.src.Open(ctx, d.names[0], d.off, -1)
	if err != nil {
		return err
	}
	defer r.Close()
	d.from = r
	for {
		n, err := r.Read(buf)
		if d.off+int64(n) > d.length {
			passOver(r)
			return refuse(ErrTooLarge, d.names[0], "goes on after its signed length of %d bytes", d.length)
		}
		if n > 0 {
			if limiter != nil {
				if err := limiter.WaitN(ctx, n); err != nil {
					return err
				}
			}
			if err := sink(buf[:n], d.off); err != nil {
				return sinkError{err}
			}
			d.off += int64(n)
		}
		if err == io.EOF {
			if d.off < d.length {
				return refuse(ErrHash, d.names[0], "ends after %d of %d bytes", d.off, d.length)
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}
