package moduleid

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/trusttree/trusttree/moduleid/internal/keysize"
)

// Verifier decides about evidence: at the node, and again in the cloud. Its
// zero value refuses everything. Set it up before use; its methods are pure
// but for the registry, the revocations and the clock they are given, and safe
// for concurrent use.
type Verifier struct {
	// Schemes are the kinds of proof that are accepted.
	Schemes []Scheme

	// Roots are the module makers' roots. They are necessary for modules that
	// the registry lists, and never sufficient: every chip of a maker chains
	// to them, the neighbour's too.
	Roots *x509.CertPool

	// Registry lists the owner's modules. Nil knows none.
	Registry Registry

	// Classes are the owner's kinds of modules by name.
	Classes map[string]Class

	// Connectors are the connectors by name, and the classes that may be in
	// each. A connector that is not listed admits nothing.
	Connectors map[string]Connector

	// Revocations are consulted for every proof. Nil refuses, unless
	// UnsafeNoRevocations is set.
	Revocations         Revocations
	UnsafeNoRevocations bool

	// Now is the clock; nil means time.Now. ClockFloor is a time that is
	// certainly past, such as that of the build or of the last run. A clock
	// before it is not set, and refuses, unless AllowUnsetClock is set: then
	// the floor is the time, for nodes without a battery-backed clock.
	Now             func() time.Time
	ClockFloor      time.Time
	AllowUnsetClock bool
}

// Connector is what may be in one connector.
type Connector struct {
	Classes  []string // names in Verifier.Classes; none admits nothing
	Required bool     // a report without an admitted module here is not affirmed
}

// Revocations knows what was revoked; package moduleid/revocation implements
// it. Safe for concurrent use.
type Revocations interface {
	// Check returns the findings about the certificates of chains, each leaf
	// first, and about a list that is missing or too old at that time.
	Check(chains [][]*x509.Certificate, now time.Time) []Finding

	// Issued returns when the list in force was issued, which is past.
	Issued() time.Time
}

func (v *Verifier) revoked(p *Proof, chains [][]*x509.Certificate, now time.Time) []Finding {
	if v.Revocations == nil {
		if v.UnsafeNoRevocations {
			return nil
		}
		return []Finding{{ReasonStaleList, "no revocation list is configured"}}
	}
	return v.Revocations.Check(append([][]*x509.Certificate{p.Chain}, chains...), now)
}

// maxSkew is how far the revocation authority's clock may be ahead.
const maxSkew = 5 * time.Minute

// errClock is returned by now for a clock before its floor.
var errClock = errors.New("the clock is not set")

func (v *Verifier) now() (time.Time, error) {
	now := time.Now
	if v.Now != nil {
		now = v.Now
	}
	t, floor := now(), v.ClockFloor
	if v.Revocations != nil {
		// The authority signed the list at that time: it is past.
		if issued := v.Revocations.Issued().Add(-maxSkew); issued.After(floor) {
			floor = issued
		}
	}
	if t.Before(floor) {
		if !v.AllowUnsetClock {
			return time.Time{}, fmt.Errorf("%w: it says %s, and %s is past", errClock, t.UTC().Format(time.RFC3339), floor.UTC().Format(time.RFC3339))
		}
		t = floor
	}
	return t, nil
}

// Verify checks the evidence that answers the challenge, and the policy for
// the connector. The caller must have made the challenge itself, from its own
// nonce, and use it once. It returns an authenticated Identity, or a
// [RefusedError] with every reason.
func (v *Verifier) Verify(c Challenge, e *Evidence) (*Identity, error) {
	refused := &RefusedError{Node: c.Node, Connector: c.Connector}
	fail := func(r Reason, err error) (*Identity, error) {
		refused.add(r, err.Error())
		return nil, refused
	}
	if v == nil {
		return fail(ReasonScheme, errors.New("there is no verifier"))
	}
	if err := c.Validate(); err != nil {
		return fail(ReasonMalformed, err)
	}
	if err := e.check(); err != nil {
		return fail(ReasonMalformed, err)
	}
	now, err := v.now()
	if err != nil {
		return fail(ReasonClock, err)
	}
	scheme := v.scheme(e.Scheme)
	if scheme == nil {
		return fail(ReasonScheme, fmt.Errorf("proofs of scheme %q are not accepted here", e.Scheme))
	}
	proof, err := scheme.Check(c, e)
	if err != nil {
		var own *RefusedError
		if errors.As(err, &own) && len(own.Findings) > 0 {
			refused.Findings = own.Findings
			return nil, refused
		}
		return fail(ReasonProof, err)
	}
	if proof == nil || len(proof.Chain) == 0 || proof.Device < 0 || proof.Device >= len(proof.Chain) || slices.Contains(proof.Chain, nil) {
		return fail(ReasonMalformed, errors.New("the scheme found no certificate"))
	}
	for i, cert := range proof.Chain {
		if err := keysize.Check(cert); err != nil {
			return fail(ReasonMalformed, fmt.Errorf("certificate %d of the chain: %w", i, err))
		}
	}
	device := proof.Chain[proof.Device]
	refused.ID = ID(device)
	id := &Identity{id: refused.ID, node: c.Node, connector: c.Connector, scheme: e.Scheme,
		cert: device, measurements: cloneMeasurements(proof.Measurements), at: now}
	v.judge(id, proof, now, refused)
	if len(refused.Findings) > 0 {
		return nil, refused
	}
	id.ok = true
	return id, nil
}

// judge adds every finding of the policy about a proof that holds.
func (v *Verifier) judge(id *Identity, p *Proof, now time.Time, refused *RefusedError) {
	for _, f := range checkLeaf(p) {
		refused.add(f.Reason, f.Detail)
	}
	rec, known, err := v.lookup(id.id)
	if err != nil {
		refused.add(ReasonForeign, "the registry does not answer: "+err.Error())
		return
	}
	class, chains, f := v.membership(p, rec, known, id.connector, now)
	// A revoked module is told so first, whatever else speaks against it.
	for _, r := range v.revoked(p, chains, now) {
		refused.add(r.Reason, r.Detail)
	}
	if f != nil {
		refused.add(f.Reason, f.Detail)
		return
	}
	id.class, id.model = class, rec.Model
	if known {
		if err := rec.fits(id.node, id.connector); err != nil {
			refused.add(ReasonClass, err.Error())
		}
	}
	if !slices.Contains(v.Connectors[id.connector].Classes, class) {
		refused.add(ReasonClass, fmt.Sprintf("class %q may not be in this connector, which takes %q", class, v.Connectors[id.connector].Classes))
	}
	cl := v.Classes[class]
	if cl.Models != nil && !slices.Contains(cl.Models, rec.Model) {
		refused.add(ReasonModel, fmt.Sprintf("model %q; class %s needs one of %q", rec.Model, class, cl.Models))
	}
	for _, d := range compareMeasurements(cl.Measurements, p.Measurements) {
		refused.add(ReasonMeasurement, d)
	}
}

func (v *Verifier) lookup(id string) (Record, bool, error) {
	if v.Registry == nil {
		return Record{}, false, nil
	}
	return v.Registry.Module(id)
}

func (v *Verifier) scheme(name string) Scheme {
	for _, s := range v.Schemes {
		if s != nil && s.Name() == name {
			return s
		}
	}
	return nil
}

// compareMeasurements names every reference value that the module did not
// sign.
func compareMeasurements(want map[int][][]byte, got []Measurement) []string {
	var diff []string
	for _, index := range sortedKeys(want) {
		found, listed := false, false
		for _, m := range got {
			if m.Index == index {
				// Every signed value of this index must be a listed one.
				ok := slices.ContainsFunc(want[index], func(w []byte) bool { return string(w) == string(m.Value) })
				found, listed = true, ok && (listed || !found)
			}
		}
		switch {
		case !found:
			diff = append(diff, fmt.Sprintf("index %d was not measured", index))
		case !listed:
			diff = append(diff, fmt.Sprintf("index %d is none of its %d reference values", index, len(want[index])))
		}
	}
	return diff
}

func sortedKeys[V any](m map[int]V) []int {
	keys := make([]int, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
