// Package dice brings the layered boot of boards without UEFI and TPM under the
// same policies: a chain of certificates in which each layer of the boot
// certifies the next one and what it measured of it (TCG DICE Attestation
// Architecture 1.1, section 6.1.1: the extension DiceTcbInfo).
//
// Start with Verify, then judge Boot.Evidence by a secureboot.Policy, learned
// from a good boot with LearnOptions.InsecureNoSB (there is no UEFI Secure Boot
// to judge). The firmware IDs of layer N stand in register FirstRegister+N, as
// if they had been extended into it.
//
// It was tested with chains made by this package's tests, after the
// specification; no board's own chain was met yet. Open Profile for DICE
// certificates (CBOR) are not read.
package dice

import (
	"bytes"
	"crypto"
	_ "crypto/sha256" // banks
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/trusttree/trusttree/secureboot"
)

// FirstRegister is the register that holds layer 0.
const FirstRegister = 8

// Limits on a chain.
const (
	maxChain = 8
	maxFWIDs = 64
)

var (
	oidTCBInfo      = asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1}
	oidMultiTCBInfo = asn1.ObjectIdentifier{2, 23, 133, 5, 4, 5}
)

var fwidHashes = []struct {
	oid  asn1.ObjectIdentifier
	hash crypto.Hash
	alg  uint16 // TCG algorithm ID
}{
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}, crypto.SHA256, 0x000B},
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}, crypto.SHA384, 0x000C},
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}, crypto.SHA512, 0x000D},
}

// ErrChain says that a chain does not lead to a trusted root. ErrFlags says
// that a layer calls itself not configured, not secure, in recovery or in
// debug mode.
var (
	ErrChain = errors.New("dice: chain is not trusted")
	ErrFlags = errors.New("dice: layer is not in its secure, normal mode")
)

// Layer is what one layer's certificate says of the code that got its key.
type Layer struct {
	Vendor, Model, Version string // printable; from the certificate
	SVN                    int
	FWIDs                  []secureboot.Digest // hashes of its code and configuration, in order
}

// Boot is a verified chain. Only Verify makes one.
type Boot struct {
	layers []Layer
	leaf   *x509.Certificate
}

// Layers returns the layers from the first, immutable one upwards.
func (b *Boot) Layers() []Layer { return append([]Layer(nil), b.layers...) }

// Leaf returns the last layer's certificate: its key signs what the running
// system attests, so whoever uses Evidence must have seen it sign a fresh nonce.
func (b *Boot) Leaf() *x509.Certificate { return b.leaf }

// tcbInfo is DiceTcbInfo.
type tcbInfo struct {
	Vendor     string         `asn1:"optional,utf8,tag:0"`
	Model      string         `asn1:"optional,utf8,tag:1"`
	Version    string         `asn1:"optional,utf8,tag:2"`
	SVN        int            `asn1:"optional,tag:3"`
	Layer      int            `asn1:"optional,tag:4"`
	Index      int            `asn1:"optional,tag:5"`
	FWIDs      []fwid         `asn1:"optional,tag:6"`
	Flags      asn1.BitString `asn1:"optional,tag:7"`
	VendorInfo []byte         `asn1:"optional,tag:8"`
	Type       []byte         `asn1:"optional,tag:9"`
}

type fwid struct {
	Alg    asn1.ObjectIdentifier
	Digest []byte
}

// Verify verifies a chain of certificates in DER, the device's first, each
// signed by the one before it, the first by one of the roots. Every certificate
// is valid at now and carries exactly one DiceTcbInfo with firmware IDs; a
// chain has one to eight. Errors: ErrChain, ErrFlags; others for what is
// malformed.
func Verify(chain [][]byte, roots []*x509.Certificate, now time.Time) (*Boot, error) {
	if len(chain) == 0 || len(chain) > maxChain {
		return nil, fmt.Errorf("dice: chain of %d certificates, want 1 to %d", len(chain), maxChain)
	}
	b := &Boot{}
	issuers := roots
	for i, der := range chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("dice: certificate %d: %w", i, err)
		}
		if err := signedBy(cert, issuers, now); err != nil {
			return nil, fmt.Errorf("%w: certificate %d: %w", ErrChain, i, err)
		}
		l, err := layer(cert)
		if err != nil {
			return nil, fmt.Errorf("dice: certificate %d: %w", i, err)
		}
		b.layers, b.leaf = append(b.layers, *l), cert
		issuers = []*x509.Certificate{cert}
	}
	return b, nil
}

func signedBy(cert *x509.Certificate, issuers []*x509.Certificate, now time.Time) error {
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return errors.New("not valid at this time")
	}
	for _, ext := range cert.UnhandledCriticalExtensions {
		if !ext.Equal(oidTCBInfo) {
			return fmt.Errorf("critical extension %s is not understood", ext)
		}
	}
	for _, issuer := range issuers {
		if bytes.Equal(issuer.RawSubject, cert.RawIssuer) && cert.CheckSignatureFrom(issuer) == nil {
			return nil
		}
	}
	return errors.New("signed by none of the issuers that are trusted here")
}

func layer(cert *x509.Certificate) (*Layer, error) {
	var raw []byte
	for _, ext := range cert.Extensions {
		switch {
		case ext.Id.Equal(oidMultiTCBInfo):
			return nil, errors.New("DiceMultiTcbInfo is not supported")
		case ext.Id.Equal(oidTCBInfo) && raw != nil:
			return nil, errors.New("two DiceTcbInfo")
		case ext.Id.Equal(oidTCBInfo):
			raw = ext.Value
		}
	}
	if raw == nil {
		return nil, errors.New("no DiceTcbInfo: the layer is not measured")
	}
	var info tcbInfo
	if rest, err := asn1.Unmarshal(raw, &info); err != nil || len(rest) > 0 {
		return nil, fmt.Errorf("DiceTcbInfo is malformed: %w", errors.Join(err, errLen(rest)))
	}
	for i := range info.Flags.BitLength {
		if info.Flags.At(i) != 0 {
			return nil, fmt.Errorf("%w: flag %d", ErrFlags, i)
		}
	}
	if len(info.FWIDs) == 0 || len(info.FWIDs) > maxFWIDs {
		return nil, fmt.Errorf("%d firmware IDs, want 1 to %d", len(info.FWIDs), maxFWIDs)
	}
	l := &Layer{Vendor: printable(info.Vendor), Model: printable(info.Model), Version: printable(info.Version), SVN: info.SVN}
	for _, f := range info.FWIDs {
		var h crypto.Hash
		for _, k := range fwidHashes {
			if k.oid.Equal(f.Alg) {
				h = k.hash
			}
		}
		if h == 0 || len(f.Digest) != h.Size() {
			return nil, fmt.Errorf("firmware ID of %d bytes with algorithm %s", len(f.Digest), f.Alg)
		}
		l.FWIDs = append(l.FWIDs, secureboot.Digest{Hash: h, Value: f.Digest})
	}
	return l, nil
}

func errLen(rest []byte) error {
	if len(rest) > 0 {
		return fmt.Errorf("%d bytes more", len(rest))
	}
	return nil
}

func printable(s string) string {
	q := fmt.Sprintf("%+q", s[:min(len(s), 128)])
	return q[1 : len(q)-1]
}

// Evidence returns the boot as evidence for a secureboot.Policy: the firmware
// IDs of one hash, layer N in register FirstRegister+N. A layer with a firmware
// ID of another hash is an error: none is left out.
func (b *Boot) Evidence(bank crypto.Hash) (secureboot.Evidence, error) {
	ev := secureboot.Evidence{Bank: bank, PCRs: make(map[int][]byte)}
	var alg uint16
	for _, k := range fwidHashes {
		if k.hash == bank {
			alg = k.alg
		}
	}
	if alg == 0 {
		return ev, fmt.Errorf("dice: hash %v is not used by firmware IDs", bank)
	}
	ev.EventLog = header(alg, bank.Size())
	for i, l := range b.layers {
		value := make([]byte, bank.Size())
		for _, d := range l.FWIDs {
			if d.Hash != bank {
				return ev, fmt.Errorf("dice: layer %d has a firmware ID of hash %v", i, d.Hash)
			}
			ev.EventLog = appendEvent(ev.EventLog, FirstRegister+i, alg, d.Value, fmt.Sprintf("%s %s %s", l.Vendor, l.Model, l.Version))
			h := bank.New()
			h.Write(value)
			h.Write(d.Value)
			value = h.Sum(nil)
		}
		ev.PCRs[FirstRegister+i] = value
	}
	return ev, nil
}

// header is a Spec ID event for one algorithm.
func header(alg uint16, size int) []byte {
	d := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0)
	d = binary.LittleEndian.AppendUint16(d, alg)
	d = binary.LittleEndian.AppendUint16(d, uint16(size))
	d = append(d, 0)
	b := make([]byte, 32)
	b[4] = 3 // EV_NO_ACTION
	binary.LittleEndian.PutUint32(b[28:], uint32(len(d)))
	return append(b, d...)
}

func appendEvent(b []byte, register int, alg uint16, digest []byte, text string) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(register))
	b = binary.LittleEndian.AppendUint32(b, 0x0D) // EV_IPL
	b = binary.LittleEndian.AppendUint32(b, 1)
	b = binary.LittleEndian.AppendUint16(b, alg)
	b = append(b, digest...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(text)))
	return append(b, text...)
}
