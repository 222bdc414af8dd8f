package tlsconn

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"time"
)

// Bounds on what a peer may present (threat: handshake floods).
const (
	maxChainCerts = 8
	maxChainBytes = 32 << 10
	maxCRLBytes   = 16 << 20
)

// TrustOptions configure a TrustStore.
type TrustOptions struct {
	// Roots are the only anchors; at least one. The system's are never used.
	Roots []*x509.Certificate
	// Intermediates are CA certificates whose CRLs AddCRL must be able to
	// check. Peers send their own intermediates, which need not be listed.
	Intermediates []*x509.Certificate
	// RequireCRL refuses a peer when any issuer in its chain has no CRL here.
	RequireCRL bool
	// CRLGrace is how long a CRL is still believed after its nextUpdate.
	// Zero means not at all: a stale CRL refuses its issuer's certificates.
	CRLGrace time.Duration
	// NotBefore is a time that is known to have passed: when the program was
	// built, or the last signed time that a node has stored. A clock that says
	// an earlier time is not believed: validity is checked against NotBefore
	// and failures match ErrClockUnset.
	NotBefore time.Time
	// CRLs keeps the newest CRL of each issuer over restarts, so that a list with a
	// lower number stays refused. Nil remembers while the TrustStore lives. LoadCRLs returns what was saved; an
	// error, or a list that cannot be read, fails NewTrustStore. SaveCRL gets a
	// name of 64 hex digits for the issuer, and returns when the list is durable.
	CRLs interface {
		LoadCRLs() ([][]byte, error)
		SaveCRL(issuer string, der []byte) error
	}
	// Clock is time.Now when nil.
	Clock func() time.Time
}

// TrustStore decides which peers are trusted: roots, CRLs and local
// revocations. Every change acts on live tunnels within a second. It is safe
// for concurrent use, and may be shared by several clients and gateways.
type TrustStore struct {
	o       TrustOptions
	changes notifier

	mu      sync.RWMutex
	roots   *x509.CertPool
	anchors map[[32]byte]*x509.Certificate // SHA-256 of the certificate
	issuers []*x509.Certificate
	crls    map[string]*crl // by issuerKey
	ids     map[ID]string
	keys    map[[32]byte]string
	floor   time.Time
}

type crl struct {
	raw     []byte
	number  *big.Int
	next    time.Time
	revoked map[string]struct{} // serial numbers, decimal
}

// Revocation names what is no longer trusted, by exactly one of ID and Key.
type Revocation struct {
	ID     ID       // a name, whatever key it has
	Key    [32]byte // SHA-256 of a SubjectPublicKeyInfo, whatever name it has
	Reason string   // for audit records
}

// NewTrustStore returns a store that trusts what chains to the roots.
func NewTrustStore(o TrustOptions) (*TrustStore, error) {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	t := &TrustStore{o: o, crls: map[string]*crl{}, ids: map[ID]string{}, keys: map[[32]byte]string{}, floor: o.NotBefore}
	if err := t.SetRoots(o.Roots); err != nil {
		return nil, err
	}
	if o.CRLs == nil {
		return t, nil
	}
	saved, err := o.CRLs.LoadCRLs()
	if err != nil {
		return nil, fmt.Errorf("tlsconn: trust store: saved CRLs: %w", err)
	}
	for _, der := range saved {
		// The issuer of a saved list may have left with its root.
		if _, err := t.addCRL(der); err != nil && !errors.Is(err, ErrUntrusted) {
			return nil, fmt.Errorf("tlsconn: trust store: saved CRL: %w", err)
		}
	}
	return t, nil
}

// SetRoots replaces the roots. Live tunnels whose chain ends at a root that
// left are cut.
func (t *TrustStore) SetRoots(roots []*x509.Certificate) error {
	if len(roots) == 0 {
		return errors.New("tlsconn: trust store: no roots; give at least one CA certificate")
	}
	pool, anchors := x509.NewCertPool(), map[[32]byte]*x509.Certificate{}
	for _, c := range roots {
		if c == nil || !c.IsCA {
			return errors.New("tlsconn: trust store: a root is not a CA certificate")
		}
		pool.AddCert(c)
		anchors[sha256.Sum256(c.Raw)] = c
	}
	t.mu.Lock()
	t.roots, t.anchors = pool, anchors
	t.issuers = append(append([]*x509.Certificate(nil), roots...), t.o.Intermediates...)
	t.mu.Unlock()
	t.changes.notify()
	return nil
}

// Revoke withdraws trust from a name or a key at once.
func (t *TrustStore) Revoke(r Revocation) error { return t.change(r, true) }

// Unrevoke gives back what Revoke took. It does not undo a CRL.
func (t *TrustStore) Unrevoke(r Revocation) error { return t.change(r, false) }

func (t *TrustStore) change(r Revocation, add bool) error {
	if r.ID.IsZero() == (r.Key == [32]byte{}) {
		return errors.New("tlsconn: revocation must name exactly one of ID and Key")
	}
	t.mu.Lock()
	switch {
	case r.ID.IsZero() && add:
		t.keys[r.Key] = r.Reason
	case r.ID.IsZero():
		delete(t.keys, r.Key)
	case add:
		t.ids[r.ID] = r.Reason
	default:
		delete(t.ids, r.ID)
	}
	t.mu.Unlock()
	t.changes.notify()
	return nil
}

// SetRevoked replaces all local revocations, as a registry publishes them.
func (t *TrustStore) SetRevoked(list []Revocation) error {
	ids, keys := map[ID]string{}, map[[32]byte]string{}
	for _, r := range list {
		switch {
		case r.ID.IsZero() == (r.Key == [32]byte{}):
			return errors.New("tlsconn: revocation must name exactly one of ID and Key")
		case r.ID.IsZero():
			keys[r.Key] = r.Reason
		default:
			ids[r.ID] = r.Reason
		}
	}
	t.mu.Lock()
	t.ids, t.keys = ids, keys
	t.mu.Unlock()
	t.changes.notify()
	return nil
}

// AddCRL takes a complete X.509 CRL (DER, at most 16 MiB; RFC 5280 5). Its
// issuer must be a root or a listed intermediate. A number lower than the last
// one, a delta or indirect CRL, and critical extensions are refused. When the list
// could not be saved, it is in force all the same, and the error says so.
func (t *TrustStore) AddCRL(der []byte) error {
	issuer, err := t.addCRL(der)
	if err != nil {
		return fmt.Errorf("tlsconn: CRL: %w", err)
	}
	if t.o.CRLs != nil {
		name := sha256.Sum256([]byte(issuer))
		if err := t.o.CRLs.SaveCRL(hex.EncodeToString(name[:]), der); err != nil {
			return fmt.Errorf("tlsconn: CRL is in force but could not be saved: %w", err)
		}
	}
	return nil
}

// addCRL puts a list in force and returns its issuer's key.
func (t *TrustStore) addCRL(der []byte) (string, error) {
	fail := func(err error) (string, error) { return "", err }
	if len(der) > maxCRLBytes {
		return fail(errors.New("larger than 16 MiB"))
	}
	rl, err := x509.ParseRevocationList(der)
	if err != nil {
		return fail(err)
	}
	if err := checkCRLForm(rl); err != nil {
		return fail(err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var issuer *x509.Certificate
	sigErr := errors.New("no root or listed intermediate has the issuer's name")
	for _, c := range t.issuers {
		if !bytes.Equal(c.RawSubject, rl.RawIssuer) {
			continue
		}
		if sigErr = rl.CheckSignatureFrom(c); sigErr == nil {
			issuer = c
			break
		}
	}
	if issuer == nil {
		return fail(fmt.Errorf("%w: issuer %q: %v", ErrUntrusted, rl.Issuer, sigErr))
	}
	k := issuerKey(issuer)
	if old := t.crls[k]; old != nil {
		switch c := rl.Number.Cmp(old.number); {
		case c < 0:
			return fail(fmt.Errorf("number %v of issuer %q is older than %v, which is loaded", rl.Number, rl.Issuer, old.number))
		case c == 0 && !bytes.Equal(old.raw, rl.Raw):
			return fail(fmt.Errorf("number %v of issuer %q is loaded already with other content", rl.Number, rl.Issuer))
		}
	}
	n := &crl{raw: rl.Raw, number: rl.Number, next: rl.NextUpdate, revoked: make(map[string]struct{}, len(rl.RevokedCertificateEntries))}
	for _, e := range rl.RevokedCertificateEntries {
		n.revoked[e.SerialNumber.String()] = struct{}{}
	}
	t.crls[k] = n
	if rl.ThisUpdate.After(t.floor) {
		t.floor = rl.ThisUpdate // signed by who we trust: that time has passed
	}
	t.changes.notify()
	return k, nil
}

// checkCRLForm refuses lists that say less than "all that is revoked".
func checkCRLForm(rl *x509.RevocationList) error {
	if rl.Number == nil {
		return errors.New("has no CRL number")
	}
	if rl.NextUpdate.IsZero() {
		return errors.New("has no nextUpdate, so its freshness cannot be known")
	}
	for _, e := range rl.Extensions {
		switch id := e.Id.String(); {
		case id == "2.5.29.27":
			return errors.New("is a delta CRL; give the complete one")
		case e.Critical:
			return fmt.Errorf("has critical extension %s (indirect or partial lists are not supported)", id)
		}
	}
	for _, r := range rl.RevokedCertificateEntries {
		for _, e := range r.Extensions {
			if e.Critical {
				return fmt.Errorf("entry %v has critical extension %s", r.SerialNumber, e.Id)
			}
		}
	}
	return nil
}

// issuerKey tells issuers apart by name and key: a CA that renews its
// certificate keeps its list, another CA with its name does not get it.
func issuerKey(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return string(sum[:]) + string(c.RawSubject)
}

// now returns the time to check against, and whether the clock's own is
// unbelievable.
func (t *TrustStore) now() (time.Time, bool) {
	now := t.o.Clock()
	if now.Before(t.floor) {
		return t.floor, true
	}
	return now, false
}

// verify builds chains from a leaf that a peer presented (leaf first) and checks them.
func (t *TrustStore) verify(certs []*x509.Certificate, usage x509.ExtKeyUsage) ([][]*x509.Certificate, error) {
	if len(certs) == 0 {
		return nil, fmt.Errorf("%w: no certificate presented", ErrUntrusted)
	}
	size := 0
	for _, c := range certs {
		size += len(c.Raw)
	}
	if len(certs) > maxChainCerts || size > maxChainBytes {
		return nil, fmt.Errorf("%w: chain of %d certificates and %d bytes; at most %d and %d", ErrUntrusted, len(certs), size, maxChainCerts, maxChainBytes)
	}
	inter := x509.NewCertPool()
	for _, c := range certs[1:] {
		inter.AddCert(c)
	}
	for _, c := range t.o.Intermediates {
		inter.AddCert(c)
	}
	t.mu.RLock()
	roots := t.roots
	now, unset := t.now()
	t.mu.RUnlock()
	chains, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
	if err != nil {
		class := ErrUntrusted
		var inv x509.CertificateInvalidError
		if errors.As(err, &inv) && inv.Reason == x509.Expired {
			class = ErrExpired
			if unset {
				class = errors.Join(ErrExpired, ErrClockUnset)
			}
		}
		return nil, fmt.Errorf("%w: %w", class, err)
	}
	return chains, t.check(chains)
}

// check decides whether chains that once verified are still trusted: roots,
// validity, revocation and CRL freshness. It makes no signature check, so that
// thousands of live tunnels are re-checked in milliseconds. One good chain is
// enough, but a revoked leaf is revoked on all of them.
func (t *TrustStore) check(chains [][]*x509.Certificate) error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	now, unset := t.now()
	err := fmt.Errorf("%w: no chain", ErrUntrusted)
	for _, chain := range chains {
		if err = t.checkChain(chain, now); err == nil {
			return nil
		}
	}
	if unset && errors.Is(err, ErrExpired) {
		return errors.Join(err, ErrClockUnset)
	}
	return err
}

func (t *TrustStore) checkChain(chain []*x509.Certificate, now time.Time) error {
	root := chain[len(chain)-1]
	if t.anchors[sha256.Sum256(root.Raw)] == nil {
		return fmt.Errorf("%w: root %q is no longer trusted", ErrUntrusted, root.Subject)
	}
	leaf := chain[0]
	if id, err := idFromCertificate(leaf); err == nil {
		if why, ok := t.ids[id]; ok {
			return fmt.Errorf("%w: %s: %s", ErrRevoked, id, why)
		}
	}
	for i, c := range chain {
		if why, ok := t.keys[sha256.Sum256(c.RawSubjectPublicKeyInfo)]; ok {
			return fmt.Errorf("%w: key of %q: %s", ErrRevoked, c.Subject, why)
		}
		if now.After(c.NotAfter) {
			return fmt.Errorf("%w: certificate %v of %q expired at %s", ErrExpired, c.SerialNumber, c.Issuer, c.NotAfter.UTC().Format(time.RFC3339))
		}
		if i+1 == len(chain) {
			break
		}
		issuer := chain[i+1]
		l := t.crls[issuerKey(issuer)]
		if l == nil {
			if t.o.RequireCRL {
				return fmt.Errorf("%w: no CRL of issuer %q is loaded", ErrExpired, issuer.Subject)
			}
			continue
		}
		if _, ok := l.revoked[c.SerialNumber.String()]; ok {
			return fmt.Errorf("%w: certificate %v is on CRL number %v of %q", ErrRevoked, c.SerialNumber, l.number, issuer.Subject)
		}
		if now.After(l.next.Add(t.o.CRLGrace)) {
			return fmt.Errorf("%w: CRL number %v of %q was due for renewal at %s", ErrExpired, l.number, issuer.Subject, l.next.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// notifier wakes everyone who waits for a change.
type notifier struct {
	mu   sync.Mutex
	subs map[chan struct{}]struct{}
}

func (n *notifier) notify() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.subs {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// subscribe adds a channel with room for one signal; the returned function
// takes it off again.
func (n *notifier) subscribe(c chan struct{}) func() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.subs == nil {
		n.subs = map[chan struct{}]struct{}{}
	}
	n.subs[c] = struct{}{}
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.subs, c)
	}
}
