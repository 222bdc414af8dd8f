package update

import (
	"crypto"
	"encoding/json"
	"slices"

	"github.com/trusttree/trusttree/update/internal/lint"
	"github.com/trusttree/trusttree/update/manifest"
)

const (
	inTotoType   = "application/vnd.in-toto+json"
	statementV1  = "https://in-toto.io/Statement/v1"
	provenanceV1 = "https://slsa.dev/provenance/v1"
)

// Provenance is a policy on where the parts of a release come from. Each part
// that is written to a slot must be a subject of a SLSA v1 provenance
// statement: an in-toto Statement in a DSSE envelope that travels as an opaque
// part of the release. The zero value accepts none.
type Provenance struct {
	// Part is the name of the opaque part that holds the envelope. Empty
	// means "provenance".
	Part string
	// Keys are the builders' keys of which one must have signed.
	Keys []crypto.PublicKey
	// Builders lists the builder IDs that are accepted.
	Builders []string
	// Sources lists the source URIs of which one must be a resolved
	// dependency of the build.
	Sources []string
}

type statement struct {
	Type    string `json:"_type"`
	Subject []struct {
		Name   string            `json:"name"`
		Digest map[string]string `json:"digest"`
	} `json:"subject"`
	PredicateType string `json:"predicateType"`
	Predicate     struct {
		BuildDefinition struct {
			ResolvedDependencies []struct {
				URI string `json:"uri"`
			} `json:"resolvedDependencies"`
		} `json:"buildDefinition"`
		RunDetails struct {
			Builder struct {
				ID string `json:"id"`
			} `json:"builder"`
		} `json:"runDetails"`
	} `json:"predicate"`
}

func (p *Provenance) check(r *manifest.Release, opaque map[string][]byte) error {
	what := "release " + r.Name
	data, ok := opaque[or(p.Part, "provenance")]
	if !ok {
		return refuse(ErrProvenance, what, "no part %q", or(p.Part, "provenance"))
	}
	payload, err := openEnvelope(data, inTotoType, p.Keys)
	if err != nil {
		return refuseErr(ErrProvenance, what, err)
	}
	var st statement
	if err := lint.Check(payload); err != nil {
		return refuseErr(ErrProvenance, what, err)
	}
	if err := json.Unmarshal(payload, &st); err != nil { // other members are the builder's business
		return refuseErr(ErrProvenance, what, err)
	}
	if st.Type != statementV1 || st.PredicateType != provenanceV1 {
		return refuse(ErrProvenance, what, "statement %.60q with predicate %.60q, want SLSA provenance v1", st.Type, st.PredicateType)
	}
	if b := st.Predicate.RunDetails.Builder.ID; !slices.Contains(p.Builders, b) {
		return refuse(ErrProvenance, what, "builder %.100q is not accepted", b)
	}
	found := false
	for _, d := range st.Predicate.BuildDefinition.ResolvedDependencies {
		found = found || slices.Contains(p.Sources, d.URI)
	}
	if !found {
		return refuse(ErrProvenance, what, "built from none of the accepted sources")
	}
	for _, part := range r.Parts {
		if part.Opaque {
			continue
		}
		covered := false
		for _, s := range st.Subject {
			covered = covered || s.Digest["sha256"] == part.SHA256
		}
		if !covered {
			return refuse(ErrProvenance, what, "part %s is not a subject of the statement", part.Name)
		}
	}
	return nil
}
