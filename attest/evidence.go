package attest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/internal/tpm"
)

// Collector gathers one body of evidence: a log, an inventory of modules. The
// nonce is the verifier's, for what signs freshly. Collectors run before the
// quote, so that what they extend into PCRs is in it.
type Collector func(ctx context.Context, nonce []byte) (mediaType string, body []byte, err error)

// FileCollector returns a Collector of one file, of 0 to limit bytes, such
// as /sys/kernel/security/tpm0/binary_bios_measurements.
func FileCollector(mediaType, name string, limit int64) Collector {
	return func(context.Context, []byte) (string, []byte, error) {
		if fi, err := os.Stat(name); err != nil {
			return "", nil, err
		} else if !fi.Mode().IsRegular() { // a pipe would hold the node up for ever
			return "", nil, fmt.Errorf("%s is not a regular file", name)
		}
		f, err := os.Open(name)
		if err != nil {
			return "", nil, err
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, min(limit, math.MaxInt64-1)+1)) // kernel logs have no size of their own
		if err == nil && int64(len(b)) > limit {
			err = fmt.Errorf("%s is larger than %d bytes", name, limit)
		}
		return mediaType, b, err
	}
}

// Evidence answers a verifier's challenge over the session s: bodies from all
// collectors, then a quote over exactly the PCRs asked for, bound to the
// bodies, the nonce and the TLS session. Errors are ErrMalformed, ErrChallenge
// when the challenge is not for this session, and those of collectors and TPM.
func (n *Node) Evidence(ctx context.Context, s Session, c *Challenge) (*Evidence, error) {
	if err := errors.Join(check(c), s.check()); err != nil {
		return nil, err
	}
	switch {
	case c.Device != n.device || s.Device != n.device:
		return nil, reason.Because(reason.OtherDevice, fmt.Errorf("%w: it is for device %s, this is %s", ErrChallenge, c.Device, n.device))
	case c.Purpose != s.Purpose:
		return nil, reason.Because(reason.OtherPurpose, fmt.Errorf("%w: it is for purpose %q, not %q", ErrChallenge, c.Purpose, s.Purpose))
	case s.Binding == [32]byte{}:
		return nil, reason.Because(reason.NoBinding, fmt.Errorf("attest: session: no binding to the TLS session"))
	}
	e := &Evidence{Version: messageVersion, Challenge: c.ID}
	for _, collect := range n.c.Collectors {
		body, err := patient(ctx, "a collector", func() (Body, error) {
			mediaType, data, err := collect(ctx, bytes.Clone(c.Nonce))
			return Body{mediaType, data}, err
		})
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, fmt.Errorf("attest: collect evidence: %w", err)
		}
		e.Bodies = append(e.Bodies, body)
	}
	if len(n.c.Keys) > 0 {
		if err := n.do(ctx, func(d *tpm.Device) error {
			body, err := n.attestKeys(d, s, c.Nonce)
			e.Bodies = append(e.Bodies, body)
			return err
		}); err != nil {
			return nil, fmt.Errorf("attest: attest keys: %w", err)
		}
	}
	slices.SortFunc(e.Bodies, func(a, b Body) int { return bytes.Compare([]byte(a.MediaType), []byte(b.MediaType)) })
	qualifying := s.qualifyingData(c.Nonce, s.Binding[:], bodiesDigest(e.Bodies))
	err := n.do(ctx, func(d *tpm.Device) error {
		return n.withAK(d, func(ak *tpm.Key) error { return n.quote(ctx, d, ak, e, c.PCRs, qualifying) })
	})
	if err != nil {
		return nil, err
	}
	return e, check(e)
}

// quoteTries bounds how often PCRs are read and quoted again when something
// was measured in between.
const quoteTries = 5

func (n *Node) quote(ctx context.Context, d *tpm.Device, ak *tpm.Key, e *Evidence, sel []quote.Selection, qualifying []byte) error {
	var list tpm2.TPMLPCRSelection
	for _, s := range sel {
		ts, err := tpm.Selection(s.Bank, s.PCRs)
		if err != nil {
			return err
		}
		list.PCRSelections = append(list.PCRSelections, ts)
	}
	var err error
	for range quoteTries {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("attest: quote: %w", err)
		}
		e.PCRValues = e.PCRValues[:0]
		for _, s := range sel {
			values, err := tpm.ReadPCRs(d, s.Bank, s.PCRs...)
			if err != nil {
				return err
			}
			for _, p := range s.PCRs {
				e.PCRValues = append(e.PCRValues, values[p]...)
			}
		}
		r, qerr := tpm2.Quote{
			SignHandle: ak.Auth(nil), QualifyingData: tpm2.TPM2BData{Buffer: qualifying},
			InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: list,
		}.Execute(d)
		if qerr != nil {
			return fmt.Errorf("attest: quote: %w", qerr)
		}
		e.Quote, e.Signature = r.Quoted.Bytes(), tpm2.Marshal(r.Signature)
		if _, err = n.ak.VerifyQuote(e.Quote, e.Signature, e.PCRValues, sel, qualifying); !errors.Is(err, quote.ErrPCRMismatch) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("attest: own quote does not verify: %w", err)
	}
	return nil
}
