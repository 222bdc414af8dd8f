package attest

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"strings"

	attestation "github.com/google/go-attestation/attest"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/trusttree/trusttree/attest/reason"
)

// Object identifiers of the TCG (TCG EK Credential Profile 2.5, section 3).
var (
	oidEKCertificate   = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	oidTPMManufacturer = asn1.ObjectIdentifier{2, 23, 133, 2, 1}
	oidTPMModel        = asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	oidTPMVersion      = asn1.ObjectIdentifier{2, 23, 133, 2, 3}
	oidSAN             = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// parseEKCertificate parses what makers put into NV: with the TCG's header of
// five bytes, with padding behind the certificate, and with serial numbers that
// are negative or not encoded in the shortest way, which crypto/x509 refuses.
func parseEKCertificate(der []byte) (*x509.Certificate, error) {
	if len(der) > maxCertificate {
		return nil, reason.Because(reason.TooLarge, fmt.Errorf("certificate of %d bytes, limit %d", len(der), maxCertificate))
	}
	c, err := attestation.ParseEKCertificate(der)
	if err != nil {
		if c = parseOddSerial(der); c == nil {
			return nil, reason.Because(reason.NoCertificate, fmt.Errorf("EK certificate: %w", err))
		}
	}
	if c.PublicKey == nil {
		return nil, reason.Because(reason.UnreadableKey, errors.New("EK certificate: its key is of a kind that can't be read, such as RSASSA-PSS or RSAES-OAEP in place of plain RSA"))
	}
	return c, nil
}

// parseOddSerial parses a certificate whose serial number crypto/x509 refuses:
// with the number's bytes as a positive one for the parser, and with the
// original bytes for the signature. It returns nil where that was not it.
func parseOddSerial(der []byte) *x509.Certificate {
	if len(der) > 5 && der[0] == 0x10 && der[1] == 0x01 && der[2] == 0 { // TCG PC Client Specific Implementation 1.21, section 7.3.2
		der = der[5:]
	}
	in := cryptobyte.String(der)
	var outer, whole, tbs, rawTBS, serial cryptobyte.String
	if !in.ReadASN1Element(&whole, cbasn1.SEQUENCE) {
		return nil
	}
	rest := whole
	if !rest.ReadASN1(&outer, cbasn1.SEQUENCE) || !outer.ReadASN1Element(&rawTBS, cbasn1.SEQUENCE) {
		return nil
	}
	signature := outer
	body := rawTBS
	if !body.ReadASN1(&tbs, cbasn1.SEQUENCE) {
		return nil
	}
	var version cryptobyte.String
	if !tbs.ReadASN1Element(&version, cbasn1.Tag(0).ContextSpecific().Constructed()) || !tbs.ReadASN1(&serial, cbasn1.INTEGER) {
		return nil
	}
	if len(serial) > 64 {
		return nil
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddBytes(version)
			b.AddASN1BigInt(new(big.Int).SetBytes(serial))
			b.AddBytes(tbs)
		})
		b.AddBytes(signature)
	})
	fixed, err := b.Bytes()
	if err != nil {
		return nil
	}
	c, err := x509.ParseCertificate(fixed)
	if err != nil {
		return nil
	}
	c.Raw, c.RawTBSCertificate = whole, rawTBS
	return c
}

// readSAN takes manufacturer, model and version from the directoryName of the
// subject alternative name (TCG EK Credential Profile 2.5, section 3.1.2).
func (e *Endorsement) readSAN(c *x509.Certificate) error {
	bad := reason.Because(reason.TPMName, errors.New("subject alternative name does not name the TPM's manufacturer, model and version"))
	for _, ext := range c.Extensions {
		if !ext.Id.Equal(oidSAN) {
			continue
		}
		var names cryptobyte.String
		in := cryptobyte.String(ext.Value)
		if !in.ReadASN1(&names, cbasn1.SEQUENCE) || !in.Empty() {
			return bad
		}
		for !names.Empty() {
			var name cryptobyte.String
			var tag cbasn1.Tag
			if !names.ReadAnyASN1(&name, &tag) {
				return bad
			}
			if tag != cbasn1.Tag(4).ContextSpecific().Constructed() {
				continue
			}
			var rdns cryptobyte.String
			if !name.ReadASN1(&rdns, cbasn1.SEQUENCE) {
				return bad
			}
			for !rdns.Empty() {
				var set cryptobyte.String
				if !rdns.ReadASN1(&set, cbasn1.SET) {
					return bad
				}
				for !set.Empty() {
					var attr, value cryptobyte.String
					var id asn1.ObjectIdentifier
					if !set.ReadASN1(&attr, cbasn1.SEQUENCE) || !attr.ReadASN1ObjectIdentifier(&id) || !attr.ReadAnyASN1(&value, &tag) {
						return bad
					}
					if len(value) > 64 || strings.ContainsFunc(string(value), func(r rune) bool { return r < 0x20 || r > 0x7e }) {
						return bad
					}
					switch {
					case id.Equal(oidTPMManufacturer):
						e.manufacturer = string(value)
					case id.Equal(oidTPMModel):
						e.model = string(value)
					case id.Equal(oidTPMVersion):
						e.version = string(value)
					}
				}
			}
		}
	}
	if e.manufacturer == "" || e.model == "" || e.version == "" {
		return bad
	}
	return nil
}
