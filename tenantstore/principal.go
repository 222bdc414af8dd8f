package tenantstore

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Principal is who was authenticated, for which stream, and so which tenant.
// Only Store.Authenticate makes one; the zero value is denied everything. It
// ends with the certificate, and follows the assignments: what the owner takes
// back is gone at once, for handles in use too.
type Principal struct {
	store   *Store
	subject string
	stream  string
	tenant  ID
	until   time.Time
	local   bool // the process itself, on the system instance
}

// Subject is the identity that the certificate names.
func (p Principal) Subject() string { return p.subject }

// Tenant is the tenant that the assignments name; empty for operators.
func (p Principal) Tenant() ID { return p.tenant }

// subjectOf reads the identity from a certificate: the only URI name, or else
// the common name.
func subjectOf(c *x509.Certificate) (string, error) {
	switch {
	case len(c.URIs) == 1:
		return c.URIs[0].String(), nil
	case len(c.URIs) > 1:
		return "", errors.New("certificate has more than one URI name")
	case c.Subject.CommonName == "":
		return "", errors.New("certificate names nobody")
	}
	return c.Subject.CommonName, nil
}

// Authenticate makes the Principal of a peer: chain is the certificate chain
// that a completed TLS handshake proved possession of (leaf first, as in
// tls.ConnectionState.PeerCertificates), stream the name of the stream on that
// connection, empty for none. It verifies the chain against Config.Roots, asks
// Config.Admit, and looks subject and stream up in the owner's assignments.
// Every failure is ErrDenied and in the audit log.
func (s *Store) Authenticate(ctx context.Context, chain []*x509.Certificate, stream string) (Principal, error) {
	p, err := s.authenticate(ctx, chain, stream)
	if err != nil {
		err = s.deny(ctx, p, "authenticate", err)
		return Principal{}, boundary(ctx, "authenticate", err)
	}
	return p, nil
}

func (s *Store) authenticate(ctx context.Context, chain []*x509.Certificate, stream string) (Principal, error) {
	p := Principal{stream: clip(stream)}
	if err := s.refresh(ctx); err != nil {
		return p, err
	}
	if len(chain) == 0 || len(chain) > 10 || chain[0] == nil {
		return p, errors.New("no client certificate")
	}
	leaf, inter := chain[0], x509.NewCertPool()
	for _, c := range chain[1:] {
		if c != nil {
			inter.AddCert(c)
		}
	}
	subject, err := subjectOf(leaf)
	p.subject = clip(subject)
	if err != nil {
		return p, err
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: s.cfg.Roots, Intermediates: inter, CurrentTime: s.cfg.Clock(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return p, err
	}
	if s.cfg.Admit != nil {
		if err := s.cfg.Admit(ctx, leaf); err != nil {
			return p, err
		}
	}
	g, err := s.grant(subject, stream)
	if err != nil {
		return p, err
	}
	p.store, p.subject, p.stream, p.tenant, p.until = s, subject, stream, g.Tenant, leaf.NotAfter
	return p, nil
}

// grant looks up what the owner's assignments say now.
func (s *Store) grant(subject, stream string) (Grant, error) {
	return s.grantAt(s.cfg.Clock(), subject, stream)
}

func (s *Store) grantAt(now time.Time, subject, stream string) (Grant, error) {
	a := s.assigned.Load()
	if a == nil {
		return Grant{}, errors.New("the store has no assignments yet (Store.Assign)")
	}
	if now.After(a.expires) {
		return Grant{}, fmt.Errorf("assignments %d expired at %v", a.serial, a.expires)
	}
	g, ok := a.grants[[2]string{subject, stream}]
	if !ok {
		return Grant{}, fmt.Errorf("assignments %d name no such subject and stream", a.serial)
	}
	return g, nil
}

// may returns nil when the principal has one of the roles in the tenant now.
// With RoleControl the tenant does not matter.
func (s *Store) may(p Principal, tenant ID, roles ...Role) error {
	if p.local && p.store == s {
		return nil
	}
	if p.store != s || p.subject == "" {
		return errors.New("not a principal of this store")
	}
	now := s.cfg.Clock()
	if now.After(p.until) {
		return fmt.Errorf("certificate expired at %v", p.until)
	}
	g, err := s.grantAt(now, p.subject, p.stream)
	if err != nil {
		return err
	}
	for _, r := range roles {
		if slices.Contains(g.Roles, r) && (r == RoleControl || g.Tenant == tenant && p.tenant == tenant) {
			return nil
		}
	}
	return fmt.Errorf("none of the roles %v in this tenant", roles)
}

// Assign takes the owner's assignments into force: a DSSE envelope made by
// SignAssignments, signed by one of Config.Owners, for this store, with a
// serial that is higher than that of the assignments in force (or the same
// document again). They are kept in the system instance. A refusal is ErrDenied
// and says why: ErrRollback for a lower serial, ErrInvalid, ErrTampered.
func (s *Store) Assign(ctx context.Context, signed []byte) error {
	return boundary(ctx, "assign", s.assign(ctx, signed))
}

func (s *Store) assign(ctx context.Context, signed []byte) error {
	if err := s.assigning.lock(ctx); err != nil {
		return err
	}
	defer s.assigning.unlock()
	// Who brings assignments is told what is wrong with them: that helps nobody
	// to forge the owner's signature.
	deny := func(reason error) error {
		return fmt.Errorf("%w: %w", s.deny(ctx, Principal{subject: "owner"}, "assign", reason), reason)
	}
	v, err := verifyAssignments(signed, s.cfg.Owners, s.cfg.Name)
	if err != nil {
		return deny(err)
	}
	if old := s.assigned.Load(); old != nil && v.serial <= old.serial {
		if v.serial == old.serial && s.sameAssignments(ctx, signed) {
			return nil
		}
		return deny(fmt.Errorf("%w: serial %d, in force is %d", ErrRollback, v.serial, old.serial))
	}
	if err := s.audit.record(ctx, s.systemTrail(), Event{Action: "assign", Subject: "owner", Detail: serialDetail(v.serial)}); err != nil {
		return err
	}
	if err := s.saveAssignments(ctx, signed); err != nil {
		return err
	}
	s.assigned.Store(v)
	return s.audit.record(ctx, s.systemTrail(), Event{Action: actionAssigned, Subject: "owner", Detail: serialDetail(v.serial)})
}

// actionAssigned says in the audit log which assignments came into force: an
// older system instance beside that log is noticed.
const actionAssigned = "assigned"

func serialDetail(n uint64) string { return fmt.Sprintf("serial %d", n) }
