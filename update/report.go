package update

import (
	"crypto"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"time"

	"github.com/trusttree/trusttree/update/internal/lint"
)

const (
	reportType = "application/vnd.trusttree.update-report.v1+json"
	maxReport  = 128 << 10
)

// Report is what a node says about its software: the version report of Uptane
// (standard 2.1, section 5.4.2.1) for one computer.
type Report struct {
	// Node is the node's name in its certificate.
	Node string `json:"node"`
	// Nonce is the asker's, so that no report is used twice.
	Nonce []byte `json:"nonce"`
	// Time is the node's clock.
	Time time.Time `json:"time"`
	// State is what the installer knows.
	State State `json:"state"`
	// Floors are the floors in force, Guard what guards them.
	Floors Floors `json:"floors"`
	Guard  string `json:"guard"`
}

// VerifiedReport is a report whose signature, node and nonce were checked.
// Only VerifyReport makes one.
type VerifiedReport struct{ report Report }

// Report returns the verified content.
func (v *VerifiedReport) Report() Report { return v.report }

type reportFile struct {
	Version int `json:"version"`
	Report
}

// SignReport signs a report in a DSSE envelope. key is the node's attested
// key: the one of its certificate, which lives in its TPM.
func SignReport(r Report, key crypto.Signer) ([]byte, error) {
	if r.Node == "" || len(r.Nonce) < 16 || len(r.Nonce) > 64 {
		return nil, fmt.Errorf("update: report of node %q with a nonce of %d bytes, want 16 to 64", r.Node, len(r.Nonce))
	}
	payload, err := json.Marshal(reportFile{1, r})
	if err != nil {
		return nil, fmt.Errorf("update: report: %w", err)
	}
	data, err := sealEnvelope(reportType, payload, key)
	if err != nil {
		return nil, fmt.Errorf("update: report: %w", err)
	}
	return data, nil
}

// VerifyReport checks a report against the public key of the certificate that
// attestation bound to the node, the node's name in it, and the nonce that was
// sent. It returns ErrSignature, ErrMalformed or ErrRollback (another nonce:
// the report is old).
func VerifyReport(data []byte, key crypto.PublicKey, node string, nonce []byte) (*VerifiedReport, error) {
	payload, err := openEnvelope(data, reportType, []crypto.PublicKey{key})
	if err != nil {
		return nil, refuseErr(ErrSignature, "report", err)
	}
	var f reportFile
	if err := lint.Strict(payload, maxReport, &f); err != nil {
		return nil, refuseErr(ErrMalformed, "report", err)
	}
	if f.Version != 1 {
		return nil, refuse(ErrMalformed, "report", "version %d: this verifier reads version 1", f.Version)
	}
	if node == "" || f.Node != node {
		return nil, refuse(ErrSignature, "report", "is of node %.60q, asked was %.60q", f.Node, node)
	}
	if len(nonce) < 16 || subtle.ConstantTimeCompare(f.Nonce, nonce) != 1 {
		return nil, refuse(ErrRollback, "report", "does not hold the nonce that was sent")
	}
	return &VerifiedReport{f.Report}, nil
}
