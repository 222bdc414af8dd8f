package tlsconn

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
)

// httpGuard holds every request of an HTTP/1 connection to the policy, not only
// the first: what one parser might read as a body and another as a request is
// refused, and no byte of a request passes before its head was judged.
type httpGuard struct {
	judge func(host string) error

	held  []byte // a head, or a line of chunked framing, that is not whole yet
	body  uint64 // bytes of body to come
	state guardState
}

type guardState int

const (
	guardHead      guardState = iota
	guardBody                 // body bytes of a known length
	guardChunkSize            // a line with a chunk's size
	guardChunk                // body bytes of a chunk
	guardChunkEnd             // the line end after them
	guardTrailer              // lines up to an empty one
)

// maxChunkLine bounds a line of chunked framing.
const maxChunkLine = 4 << 10

var errHTTP = errors.New("HTTP that can be read in two ways")

// pass takes bytes from the opener and returns those that may go on.
func (g *httpGuard) pass(b []byte) ([]byte, error) {
	if len(g.held) > 0 {
		b = append(g.held, b...)
		g.held = nil
	}
	all := b
	for len(b) > 0 {
		n, err := g.step(b)
		if err != nil {
			return nil, err
		}
		if n == 0 { // not whole
			break
		}
		b = b[n:]
	}
	g.held = append(g.held, b...)
	return all[:len(all)-len(b)], nil
}

// whole reports whether the opener may end here.
func (g *httpGuard) whole() bool { return len(g.held) == 0 && g.state == guardHead }

// step judges the first piece of b and returns its length, 0 when it is not whole.
func (g *httpGuard) step(b []byte) (int, error) {
	switch g.state {
	case guardHead:
		return g.head(b)
	case guardBody, guardChunk:
		n := int(min(uint64(len(b)), g.body))
		if g.body -= uint64(n); g.body == 0 {
			g.state++ // guardChunk to guardChunkEnd
			if g.state == guardChunkSize {
				g.state = guardHead
			}
		}
		return n, nil
	}
	line, err := guardLine(b)
	if line == nil || err != nil {
		return 0, err
	}
	switch g.state {
	case guardChunkSize:
		size, _, _ := strings.Cut(string(line), ";")
		n, err := strconv.ParseUint(strings.TrimRight(size, " \t"), 16, 63)
		if err != nil || size == "" || size[0] == '+' || strings.ContainsRune(size, '_') {
			return 0, fmt.Errorf("%w: chunk size %.40q", errHTTP, size)
		}
		g.state, g.body = guardChunk, n
		if n == 0 {
			g.state = guardTrailer
		}
	case guardChunkEnd:
		if len(line) != 0 {
			return 0, fmt.Errorf("%w: chunk longer than its size", errHTTP)
		}
		g.state = guardChunkSize
	case guardTrailer:
		if len(line) == 0 {
			g.state = guardHead
		}
	}
	return len(line) + 2, nil
}

// guardLine returns the first line without its CRLF, nil when it is not whole.
func guardLine(b []byte) ([]byte, error) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		if len(b) > maxChunkLine {
			return nil, fmt.Errorf("%w: a line of more than %d bytes", errHTTP, maxChunkLine)
		}
		return nil, nil
	}
	if i == 0 || b[i-1] != '\r' || bytes.IndexByte(b[:i-1], '\r') >= 0 {
		return nil, fmt.Errorf("%w: line end", errHTTP)
	}
	return b[: i-1 : i-1], nil
}

// head judges a request's head.
func (g *httpGuard) head(b []byte) (int, error) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		if len(b) > maxHead {
			return 0, fmt.Errorf("%w: a request's head of more than %d bytes", errHTTP, maxHead)
		}
		return 0, nil
	}
	end += 4
	r, host, err := readRequestHead(b[:end])
	if err != nil {
		return 0, err
	}
	if err := g.judge(host); err != nil {
		return 0, err
	}
	switch {
	case len(r.TransferEncoding) > 0:
		g.state = guardChunkSize
	case r.ContentLength > 0:
		g.state, g.body = guardBody, uint64(r.ContentLength)
	}
	return end, nil
}

// readRequestHead reads a whole head strictly and returns the request and the
// host that it names, in the form that rules have.
func readRequestHead(head []byte) (*http.Request, string, error) {
	if end := len(head); end > maxHead {
		return nil, "", fmt.Errorf("%w: a request's head of %d bytes", errHTTP, end)
	}
	hosts, lengths, encodings := 0, 0, 0
	for i, line := range bytes.Split(head[:len(head)-4], []byte("\r\n")) {
		name, _, colon := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.ContainsAny(line, "\r\n\x00"):
			return nil, "", fmt.Errorf("%w: line end within a line", errHTTP)
		case i == 0:
			continue
		case !colon || len(name) == 0 || bytes.ContainsAny(name, " \t"):
			return nil, "", fmt.Errorf("%w: header line %.40q", errHTTP, line)
		case strings.EqualFold(string(name), "Host"):
			hosts++
		case strings.EqualFold(string(name), "Content-Length"):
			lengths++
		case strings.EqualFold(string(name), "Transfer-Encoding"):
			encodings++
		}
	}
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(head)))
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", errHTTP, err)
	}
	switch {
	case r.ProtoMajor != 1:
		return nil, "", fmt.Errorf("%w: %s", errHTTP, r.Proto)
	case r.Method == http.MethodConnect:
		return nil, "", errors.New("CONNECT is refused where a rule names HTTP hosts")
	case r.Header.Get("Upgrade") != "":
		return nil, "", errors.New("an upgrade is refused where a rule names HTTP hosts: what follows could not be read")
	case hosts != 1:
		return nil, "", fmt.Errorf("%w: %d Host headers", errHTTP, hosts)
	case lengths > 1 || encodings > 1 || lengths+encodings > 1:
		return nil, "", fmt.Errorf("%w: %d Content-Length and %d Transfer-Encoding headers", errHTTP, lengths, encodings)
	case encodings == 1 && r.ProtoMinor == 0:
		return nil, "", fmt.Errorf("%w: Transfer-Encoding in HTTP/1.0", errHTTP)
	case !strings.HasPrefix(r.RequestURI, "/") && r.RequestURI != "*":
		return nil, "", fmt.Errorf("%w: request target %.80q names a host of its own", errHTTP, r.RequestURI)
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return r, cleanHost(host), nil
}

// guard returns the guard of a flow whose rules name HTTP hosts, or nil.
func (f *flow) guard() *httpGuard {
	if !f.decision().http {
		return nil
	}
	return &httpGuard{judge: func(host string) error {
		return f.decide(func(q *Flow) { q.HTTPHost = host })
	}}
}

// readGuarded is Read for the end that delivers a guarded flow.
func (c *flowConn) readGuarded(b []byte) (int, error) {
	for len(c.passed) == 0 {
		if c.gbuf == nil {
			c.gbuf = make([]byte, maxHead)
		}
		n, err := c.s.Read(c.gbuf)
		if n, err = c.took(n, err); n > 0 {
			passed, derr := c.guard.pass(c.gbuf[:n])
			if derr != nil {
				return 0, c.guarded(derr)
			}
			c.passed = append(c.passed[:0], passed...)
		}
		if err == io.EOF && !c.guard.whole() {
			return 0, c.guarded(fmt.Errorf("%w: it ends within a request", errHTTP))
		}
		if err != nil && len(c.passed) == 0 {
			return 0, err
		}
	}
	n := copy(b, c.passed)
	c.passed = c.passed[n:]
	return n, nil
}

// guarded ends a flow because of one of its requests.
func (c *flowConn) guarded(err error) error {
	var re *RefusedError
	if !errors.As(err, &re) {
		err = &RefusedError{Code: CodeDenied, Side: c.f.t.e.side, Peer: c.f.t.peer.ID, Target: c.f.target.String(), Rule: c.f.decision().Rule, Err: err}
	}
	c.f.reset(CodeDenied, c.f.decision().Rule, err)
	return err
}
