package tlsconn

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"
)

// Bounds of inspection (threat: slow loris on streams).
const (
	maxHead     = 16 << 10
	headTimeout = 3 * time.Second
)

// Inspector looks at the first bytes that the opener of a dialled flow sends,
// at both ends, besides the built-in TLS and HTTP inspection. head is at most
// 16 KiB and must not be kept. done says that no more bytes are needed; an
// error refuses the flow, and its text goes into the record. An inspector that
// has not enough at 16 KiB, or after 3 s, refuses the flow.
type Inspector interface {
	Inspect(f Flow, head []byte) (done bool, err error)
}

// inspection gathers a flow's first bytes until the policy and the inspectors
// have decided.
type inspection struct {
	f    *flow
	head []byte
}

// inspects reports whether a dialled flow's first bytes decide.
func (f *flow) inspects() bool {
	return f.target.service() == "" && f.target.proto == TCP && (f.decision().Inspect || len(f.t.e.cfg.Inspectors) > 0)
}

// see takes more bytes. done says that the flow may go on with what head holds.
// final says that no more bytes will come.
func (i *inspection) see(b []byte, final bool) (done bool, err error) {
	if len(i.head)+len(b) > maxHead {
		final = true
	}
	i.head = append(i.head, b...)
	head := i.head[:min(len(i.head), maxHead)]
	s, known := sniff(head)
	if !known && !final {
		return false, nil
	}
	// What could not be recognised has no name, and no rule on names matches it.
	if err := i.f.decide(func(q *Flow) {
		q.Inspected, q.SNI, q.ALPN, q.HTTPHost, q.hides = true, s.sni, s.alpn, s.host, s.hides
	}); err != nil {
		return false, err
	}
	i.f.mu.Lock()
	q := i.f.q
	i.f.mu.Unlock()
	for _, in := range i.f.t.e.cfg.Inspectors {
		ok, err := in.Inspect(q, head)
		if err == nil && !ok && final {
			err = errors.New("inspector did not recognise the flow")
		}
		if err != nil {
			return false, &RefusedError{Code: CodeDenied, Side: i.f.t.e.side, Peer: i.f.t.peer.ID, Target: i.f.target.String(), Rule: i.f.decision().Rule, Err: err}
		}
		if !ok {
			return false, nil
		}
	}
	return true, nil
}

// readHead reads from the opener until the inspection is done.
func (c *flowConn) readHead() ([]byte, error) {
	i := &inspection{f: c.f}
	_ = c.SetReadDeadline(time.Now().Add(headTimeout))
	buf := make([]byte, 4<<10)
	for {
		n, err := c.Read(buf)
		if err != nil && err != io.EOF {
			return nil, fmt.Errorf("%w: the flow's first bytes: %w", ErrDenied, err)
		}
		done, derr := i.see(buf[:n], err == io.EOF)
		if derr != nil {
			return nil, derr
		}
		if done {
			return i.head, c.SetReadDeadline(time.Time{})
		}
		if err == io.EOF {
			return nil, fmt.Errorf("%w: the flow ended before it could be inspected", ErrDenied)
		}
	}
}

// sniffed is what first bytes say.
type sniffed struct {
	sni  string
	alpn []string
	host string
	// hides is the protocol that the bytes speak when they hide what is asked for.
	hides string
}

// sniff recognises TLS and HTTP/1. known is false while more bytes may tell.
// What is neither is known to be nothing.
func sniff(head []byte) (s sniffed, known bool) {
	switch {
	case len(head) == 0:
		return s, false
	case head[0] == 0x16:
		return sniffTLS(head)
	case head[0] >= 'A' && head[0] <= 'Z':
		return sniffHTTP(head)
	}
	return s, true
}

// extensionECH is encrypted_client_hello: the name in the clear is not the one
// that is asked for.
const extensionECH = 0xfe0d

var errSniffed = errors.New("sniffed")

// sniffTLS has crypto/tls read the ClientHello, over a connection that has only
// head and takes no answer.
func sniffTLS(head []byte) (s sniffed, known bool) {
	c := &headConn{r: bytes.NewReader(head)}
	err := tls.Server(c, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(h.Extensions, extensionECH) {
			s.hides = hidesTLS
			return nil, errSniffed
		}
		s.sni, s.alpn = cleanHost(h.ServerName), slices.Clone(h.SupportedProtos)
		return nil, errSniffed
	}}).Handshake()
	if !errors.Is(err, errSniffed) {
		s.hides = hidesTLS
	}
	return s, errors.Is(err, errSniffed) || !c.starved
}

// sniffHTTP reads the Host of the first request.
func sniffHTTP(head []byte) (s sniffed, known bool) {
	end := bytes.Index(head, []byte("\r\n\r\n"))
	if end < 0 {
		line, _, whole := bytes.Cut(head, []byte("\r\n"))
		if whole && !bytes.Contains(line, []byte(" HTTP/1.")) || bytes.ContainsFunc(head, func(r rune) bool { return r < ' ' && r != '\r' && r != '\n' && r != '\t' }) {
			if bytes.Contains(line, []byte(" HTTP/")) {
				s.hides = hidesHTTP
			}
			return s, true // not HTTP/1
		}
		s.hides = hidesHTTP
		return s, false
	}
	_, host, err := readRequestHead(head[:end+4])
	if s.host = host; err != nil {
		s.hides = hidesHTTP
	}
	return s, true
}

// cleanHost returns a name in the form that rules have, or none.
func cleanHost(h string) string {
	h = strings.ToLower(h)
	if checkHost(h) != nil {
		return ""
	}
	return h
}

// headConn is a connection that has some bytes to read and swallows writes.
type headConn struct {
	r       *bytes.Reader
	starved bool
}

func (c *headConn) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	if err == io.EOF {
		c.starved = true
	}
	return n, err
}

func (*headConn) Write(b []byte) (int, error)      { return len(b), nil }
func (*headConn) Close() error                     { return nil }
func (*headConn) LocalAddr() net.Addr              { return flowAddr{} }
func (*headConn) RemoteAddr() net.Addr             { return flowAddr{} }
func (*headConn) SetDeadline(time.Time) error      { return nil }
func (*headConn) SetReadDeadline(time.Time) error  { return nil }
func (*headConn) SetWriteDeadline(time.Time) error { return nil }
