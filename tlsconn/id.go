package tlsconn

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// maxIDLength is the longest SPIFFE ID in bytes (SPIFFE-ID 2.3).
const maxIDLength = 2048

// ID is a SPIFFE ID: the name that a certificate's one URI SAN holds.
// The zero value names nobody and matches nothing.
type ID struct {
	TrustDomain string // lower case, as in "city.example"
	Path        string // "/node/17", or empty for the trust domain itself
}

// ParseID parses "spiffe://trust-domain/path" as the SPIFFE-ID standard, 2,
// asks: no port, user, query or fragment, no empty, "." or ".." segment.
func ParseID(s string) (ID, error) {
	fail := func(why string) (ID, error) {
		if len(s) > 128 {
			s = s[:128] + "…"
		}
		return ID{}, fmt.Errorf("tlsconn: SPIFFE ID %q: %s", s, why)
	}
	if len(s) > maxIDLength {
		return fail("longer than 2048 bytes")
	}
	rest, ok := strings.CutPrefix(s, "spiffe://")
	if !ok {
		return fail("does not begin with spiffe://")
	}
	td, path, slash := strings.Cut(rest, "/")
	if td == "" || len(td) > 255 || strings.Trim(td, "abcdefghijklmnopqrstuvwxyz0123456789.-_") != "" {
		return fail("trust domain must be 1 to 255 of a-z, 0-9, '.', '-', '_'")
	}
	id := ID{TrustDomain: td}
	if !slash {
		return id, nil
	}
	for seg := range strings.SplitSeq(path, "/") {
		if err := checkSegment(seg); err != nil {
			return fail(err.Error())
		}
	}
	id.Path = "/" + path
	return id, nil
}

const segmentChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"

func checkSegment(seg string) error {
	switch {
	case seg == "":
		return errors.New("empty path segment")
	case seg == "." || seg == "..":
		return errors.New("dot segment in path")
	case strings.Trim(seg, segmentChars) != "":
		return errors.New("path segments hold letters, digits, '.', '-' and '_' only")
	}
	return nil
}

// String returns the ID as a URI, or the empty string for the zero value.
func (id ID) String() string {
	if id.IsZero() {
		return ""
	}
	return "spiffe://" + id.TrustDomain + id.Path
}

// IsZero reports whether the ID names nobody.
func (id ID) IsZero() bool { return id.TrustDomain == "" }

// URL returns the ID for a certificate template's URIs.
func (id ID) URL() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: id.TrustDomain, Path: id.Path}
}

// idFromCertificate reads the SPIFFE ID of a leaf: exactly one URI SAN, and not a
// CA certificate (X509-SVID 4.1, 5.2).
func idFromCertificate(c *x509.Certificate) (ID, error) {
	if len(c.URIs) != 1 {
		return ID{}, fmt.Errorf("certificate has %d URI names, a SPIFFE certificate has exactly one", len(c.URIs))
	}
	if c.IsCA {
		return ID{}, errors.New("certificate is a CA's, not a leaf")
	}
	return ParseID(c.URIs[0].String())
}

// idPattern matches IDs: "spiffe://td/node/*" (one segment each *),
// "spiffe://td/node/**" (one or more at the end), or an exact ID.
type idPattern struct {
	td   string
	segs []string
	deep bool
}

func parseIDPattern(s string) (idPattern, error) {
	base, deep := strings.CutSuffix(s, "/**")
	head, path, ok := strings.Cut(strings.TrimPrefix(base, "spiffe://"), "/")
	id, err := ParseID("spiffe://" + head)
	if err != nil || !strings.HasPrefix(s, "spiffe://") || len(s) > maxIDLength {
		return idPattern{}, fmt.Errorf("peer pattern %.128q: must begin with spiffe:// and a trust domain without stars", s)
	}
	p := idPattern{td: id.TrustDomain, deep: deep}
	if !ok {
		return p, nil
	}
	p.segs = strings.Split(path, "/")
	for _, seg := range p.segs {
		if seg == "*" {
			continue
		}
		if err := checkSegment(seg); err != nil {
			return idPattern{}, fmt.Errorf("peer pattern %.128q: %w; a star stands for a whole segment", s, err)
		}
	}
	return p, nil
}

func (p idPattern) match(id ID) bool {
	if id.IsZero() || id.TrustDomain != p.td {
		return false
	}
	var segs []string
	if id.Path != "" {
		segs = strings.Split(id.Path[1:], "/")
	}
	if len(segs) < len(p.segs) || !p.deep && len(segs) != len(p.segs) || p.deep && len(segs) == len(p.segs) {
		return false
	}
	for i, want := range p.segs {
		if want != "*" && want != segs[i] {
			return false
		}
	}
	return true
}
