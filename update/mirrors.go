package update

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/url"
	"strings"
	"time"
)

// mirrors are base URLs of the same files.
type mirrors struct {
	bases []*url.URL
	first int // which to ask first; httpSource.mu guards it
}

// passOver makes the next request begin at another mirror than the one from
// which r comes.
func passOver(r io.Reader) {
	if p, ok := r.(*paced); ok {
		p.pass()
	}
}

// places returns in how many places a source has a file.
func places(s Source, name string) int {
	if h, ok := s.(*httpSource); ok {
		n, _ := h.places(name)
		return n
	}
	return 1
}

// absentInPart is an error of a file that is absent from some mirrors, while the
// others did not deliver it. It is fs.ErrNotExist too: what it means depends on
// the file.
type absentInPart struct{ error }

func (e absentInPart) Unwrap() []error { return []error{e.error, fs.ErrNotExist} }

// absent says whether a source is sure that it does not have a file.
func absent(err error) bool {
	var in absentInPart
	return errors.Is(err, fs.ErrNotExist) && !errors.As(err, &in)
}

// eachPlace calls f for each place of a file until one succeeds. The error is
// fs.ErrNotExist when all of them say so, else of the first that failed in
// another way.
func (s *httpSource) eachPlace(ctx context.Context, name string, f func(place int) error) error {
	n, first := s.places(name)
	missing := 0
	var failed error
	for i := range n {
		err := f((first + i) % n)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case absent(err):
			missing++
			continue
		case failed == nil:
			failed = err
		}
		s.passOver(name, (first+i)%n)
	}
	if failed == nil {
		return &fs.PathError{Op: "get", Path: name, Err: fs.ErrNotExist}
	}
	if r := new(RefusedError); !errors.As(failed, &r) {
		failed = refuseErr(ErrUnavailable, name, failed)
	}
	if missing > 0 {
		return absentInPart{failed}
	}
	return failed
}

func (s *httpSource) Open(ctx context.Context, name string, off, n int64) (r io.ReadCloser, err error) {
	err = s.eachPlace(ctx, name, func(place int) (err error) {
		r, err = s.openAt(ctx, name, off, n, place)
		return err
	})
	return r, err
}

func (s *httpSource) places(name string) (n, first int) {
	m, _ := s.locate(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(m.bases), m.first
}

// passOver makes the next request for such files begin behind a mirror.
func (s *httpSource) passOver(name string, place int) {
	m, _ := s.locate(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	m.first = (place + 1) % len(m.bases)
}

// openAt asks one mirror, several times if need be.
func (s *httpSource) openAt(ctx context.Context, name string, off, n int64, place int) (r io.ReadCloser, err error) {
	m, path := s.locate(name)
	u := *m.bases[place]
	u.Path, u.RawPath = "", ""
	full := u.String() + strings.TrimSuffix(m.bases[place].EscapedPath(), "/") + "/" + path
	pass := func() { s.passOver(name, place) }
	for attempt := range s.cfg.Attempts {
		if attempt > 0 {
			if err := sleep(ctx, 100*time.Millisecond<<attempt); err != nil {
				return nil, err
			}
		}
		r, err = s.get(ctx, full, pass, off, n)
		if err == nil || ctx.Err() != nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrRedirect) || errors.Is(err, ErrServer) {
			break
		}
	}
	return r, err
}

// readAll reads a whole small file, at most limit bytes, and hands it to check.
// What does not verify is asked for at the next mirror: one that lies, lags or
// stalls stops nobody who has another. Errors of check are returned as they are.
func readAll(ctx context.Context, s Source, name string, limit int64, check func([]byte) error) ([]byte, error) {
	h, ok := s.(*httpSource)
	if !ok {
		r, err := s.Open(ctx, name, 0, -1)
		if err != nil {
			return nil, err
		}
		return readChecked(r, name, limit, check)
	}
	var data []byte
	err := h.eachPlace(ctx, name, func(place int) error {
		r, err := h.openAt(ctx, name, 0, -1, place)
		if err != nil {
			return err
		}
		data, err = readChecked(r, name, limit, check)
		return err
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

func readChecked(r io.ReadCloser, name string, limit int64, check func([]byte) error) ([]byte, error) {
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = refuse(ErrTooLarge, name, "more than %d bytes", limit)
	}
	if err == nil {
		err = check(data)
	}
	if err != nil {
		return nil, err
	}
	return data, nil
}

// fetchSmall fetches a file of known length into memory. Its caller has bounded
// the length.
func fetchSmall(ctx context.Context, src Source, names []string, length int64, limits Limits, check func([]byte) error) ([]byte, error) {
	for again := places(src, names[0]) - 1; ; again-- {
		data := make([]byte, 0, length)
		d := download{src: src, names: names, length: length, limits: limits, check: func() error { return check(data) }}
		err := d.run(ctx, func(p []byte, _ int64) error { data = append(data, p...); return nil })
		if err == nil {
			return data, nil
		}
		if again == 0 || !errors.Is(err, ErrHash) && !errors.Is(err, ErrTooLarge) {
			return nil, err
		}
	}
}
