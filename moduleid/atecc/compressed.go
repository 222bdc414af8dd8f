package atecc

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/fips140"
	"crypto/sha1" // of public keys, for key identifiers (RFC 5280, 4.2.1.2)
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Compressed reads chains in Microchip's compressed form: 72 bytes with the
// signature and the fields that differ, from which certificates are made again
// after a template. Samples of any two certificates of the same making are the
// templates: the device's, and its signer's, both DER.
//
// The slots are those of Microchip's own layout: the device certificate in 10,
// the signer's public key in 11, its certificate in 12. Issuers above the
// signer are appended.
//
// Certificates that come out wrong do not verify: a template that does not fit
// is found, and never accepted.
func Compressed(deviceSample, signerSample []byte, issuers ...[]byte) CertSource {
	return func(ctx context.Context, d *Device) ([][]byte, error) {
		var slots [13][]byte
		for _, slot := range []int{5, 10, 11, 12} {
			if slot == 5 && !bytes.Contains(deviceSample, []byte(euiPrefix)) {
				continue
			}
			var err error
			if slots[slot], err = d.ReadSlot(ctx, slot); err != nil {
				return nil, unreadable(slot, err)
			}
		}
		signerKey := append(bytes.Clone(slots[11][4:36]), slots[11][40:72]...)
		signer, err := rebuild(signerSample, fields{compressed: slots[12], key: signerKey, serial: d.Serial})
		if err != nil {
			return nil, fmt.Errorf("%w: signer certificate: %w", ErrNoCertificate, err)
		}
		point, err := d.PublicKey.Bytes()
		if err != nil {
			return nil, err
		}
		f := fields{compressed: slots[10], key: point[1:], issuerKey: signerKey, serial: d.Serial}
		if slots[5] != nil {
			f.eui48 = slots[5][:12]
		}
		device, err := rebuild(deviceSample, f)
		if err != nil {
			return nil, fmt.Errorf("%w: device certificate: %w", ErrNoCertificate, err)
		}
		return append([][]byte{device, signer}, issuers...), nil
	}
}

const (
	compressedSize = 72
	euiPrefix      = "eui48_"
)

// fields are what differs between two certificates of one template.
type fields struct {
	compressed []byte
	key        []byte // X‖Y
	issuerKey  []byte // X‖Y of the issuer; nil leaves the authority key identifier
	serial     [9]byte
	eui48      []byte // 12 digits; nil leaves them
}

// rebuild puts the fields into the sample. Every field replaces one of the
// same size, which must be in the sample exactly as often as it is expected.
func rebuild(sample []byte, f fields) ([]byte, error) {
	cert, err := x509.ParseCertificate(sample)
	if err != nil {
		return nil, fmt.Errorf("the sample: %w", err)
	}
	oldKey, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok || len(f.compressed) != compressedSize || len(f.key) != 64 {
		return nil, errors.New("the sample is not for a P-256 key, or the chip's data has the wrong size")
	}
	notBefore, notAfter, err := decompressDates(f.compressed)
	if err != nil {
		return nil, err
	}
	serial, err := serialOf(f, len(cert.SerialNumber.Bytes()))
	if err != nil {
		return nil, err
	}
	oldPoint, err := oldKey.Bytes()
	if err != nil {
		return nil, err
	}
	validity, tags, err := validityOf(cert)
	if err != nil {
		return nil, err
	}
	if tags[1] == cbasn1.UTCTime && notAfter.Year() >= 2050 || tags[0] == cbasn1.UTCTime && notBefore.Year() >= 2050 {
		return nil, fmt.Errorf("the validity ends in %d, which does not fit the sample's UTCTime", notAfter.Year())
	}
	tbs := bytes.Clone(cert.RawTBSCertificate)
	put := func(what string, from, to []byte, times int) {
		if err != nil || len(from) == 0 {
			return
		}
		if n := bytes.Count(tbs, from); n != times || len(from) != len(to) {
			err = fmt.Errorf("the sample has the %s %d times in %d bytes; expected are %d times and %d bytes", what, n, len(from), times, len(to))
			return
		}
		tbs = bytes.Replace(tbs, from, to, times)
	}
	oldID, newID := signerID(cert), strings.ToUpper(hex.EncodeToString(f.compressed[67:69]))
	if oldID != "" {
		put("signer's ID", []byte(oldID), []byte(newID), strings.Count(cert.Issuer.String()+"\n"+cert.Subject.String(), oldID))
	}
	if sn := deviceSerial(cert); sn != "" {
		put("device's serial number", []byte(sn), []byte(strings.ToUpper(hex.EncodeToString(f.serial[:]))), 1)
	}
	put("serial number", cert.SerialNumber.Bytes(), serial, 1)
	put("validity", validity, append(derTime(notBefore, tags[0]), derTime(notAfter, tags[1])...), 1)
	put("public key", oldPoint[1:], f.key, 1)
	put("subject key identifier", cert.SubjectKeyId, keyID(f.key), 1)
	if f.issuerKey != nil {
		put("authority key identifier", cert.AuthorityKeyId, keyID(f.issuerKey), 1)
	}
	if i := bytes.Index(tbs, []byte(euiPrefix)); err == nil && i >= 0 && f.eui48 != nil && i+len(euiPrefix)+12 <= len(tbs) {
		copy(tbs[i+len(euiPrefix):], f.eui48)
	}
	if err != nil {
		return nil, err
	}
	return assemble(tbs, f.compressed[:64])
}

// assemble signs off the certificate with a raw signature. ECDSA-Sig-Value is
// as long as its integers need.
func assemble(tbs, sig []byte) ([]byte, error) {
	value, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])})
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct {
		TBS asn1.RawValue
		Alg struct{ ID asn1.ObjectIdentifier }
		Sig asn1.BitString
	}{asn1.RawValue{FullBytes: tbs}, struct{ ID asn1.ObjectIdentifier }{asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}, asn1.BitString{Bytes: value, BitLength: 8 * len(value)}})
}

func keyID(key []byte) []byte {
	var sum [sha1.Size]byte
	// A name, which protects nothing: also in FIPS 140-only mode.
	fips140.WithoutEnforcement(func() { sum = sha1.Sum(append([]byte{4}, key...)) })
	return sum[:]
}

// signerID returns the four digits at the end of a common name of a signer, in
// the subject of a signer's or the issuer of a device's certificate.
func signerID(c *x509.Certificate) string {
	for _, cn := range []string{c.Subject.CommonName, c.Issuer.CommonName} {
		if i := strings.LastIndexByte(cn, ' '); i >= 0 && len(cn) == i+5 && strings.Contains(cn, "Signer") && isHex(cn[i+1:]) {
			return cn[i+1:]
		}
	}
	return ""
}

// deviceSerial returns the 18 digits of the chip's serial number in the
// subject's common name.
func deviceSerial(c *x509.Certificate) string {
	cn := c.Subject.CommonName
	if len(cn) >= 18 && isHex(cn[len(cn)-18:]) {
		return cn[len(cn)-18:]
	}
	return ""
}

func isHex(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && s == strings.ToUpper(s)
}

// validityOf returns the encoded validity of a certificate, and the tags of its
// two times: the template decides about UTCTime or GeneralizedTime.
func validityOf(c *x509.Certificate) (content []byte, tags [2]cbasn1.Tag, err error) {
	in := cryptobyte.String(c.RawTBSCertificate)
	var tbs, validity, t cryptobyte.String
	ok := in.ReadASN1(&tbs, cbasn1.SEQUENCE) && tbs.SkipOptionalASN1(cbasn1.Tag(0).Constructed().ContextSpecific()) &&
		tbs.SkipASN1(cbasn1.INTEGER) && tbs.SkipASN1(cbasn1.SEQUENCE) && tbs.SkipASN1(cbasn1.SEQUENCE) && tbs.ReadASN1(&validity, cbasn1.SEQUENCE)
	content = validity
	for i := range tags {
		ok = ok && validity.ReadAnyASN1(&t, &tags[i])
	}
	if !ok {
		return nil, tags, errors.New("the sample's validity can't be read")
	}
	return content, tags, nil
}

// derTime encodes a time.
func derTime(t time.Time, tag cbasn1.Tag) []byte {
	layout := "20060102150405Z"
	if tag == cbasn1.UTCTime {
		layout = layout[2:]
	}
	s := t.UTC().Format(layout)
	return append([]byte{byte(tag), byte(len(s))}, s...)
}

// decompressDates reads the validity: bytes 64 to 66 hold year since 2000,
// month, day, hour and years to expiry in 5, 4, 5, 5 and 5 bits; since format
// 1, byte 71 has further bits of both years.
func decompressDates(c []byte) (from, to time.Time, err error) {
	bits := uint32(c[64])<<16 | uint32(c[65])<<8 | uint32(c[66])
	year, month, day, hour, expire := int(bits>>19), int(bits>>15&15), int(bits>>10&31), int(bits>>5&31), int(bits&31)
	if format := c[70] & 15; format >= 1 {
		year |= int(c[71]>>6) << 5
		expire |= int(c[71]>>4&3) << 5
	}
	from = time.Date(2000+year, time.Month(month), day, hour, 0, 0, 0, time.UTC)
	if month < 1 || month > 12 || from.Day() != day || hour > 23 {
		return from, to, fmt.Errorf("the compressed certificate has the impossible date %d-%d-%d %d h", 2000+year, month, day, hour)
	}
	if expire == 0 {
		return from, time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), nil
	}
	return from, from.AddDate(expire, 0, 0), nil
}

// serialOf computes the certificate's serial number of n bytes, as the source
// in byte 70 says.
func serialOf(f fields, n int) ([]byte, error) {
	dates := bytes.Clone(f.compressed[64:67])
	if f.compressed[70]&15 >= 1 {
		dates = append(dates, f.compressed[71]&0xf0)
	}
	var sum [32]byte
	switch source := f.compressed[70] >> 4; source {
	case 0x8:
		return append([]byte{0x40}, f.serial[:]...), nil
	case 0xa:
		sum = sha256.Sum256(append(bytes.Clone(f.key), dates...))
	case 0xb:
		sum = sha256.Sum256(append(f.serial[:], dates...))
	default:
		return nil, fmt.Errorf("serial numbers of source %#x are not supported; store whole certificates instead", source)
	}
	if n < 1 || n > len(sum) {
		return nil, fmt.Errorf("a serial number of %d bytes", n)
	}
	sum[0] = sum[0]&0x3f | 0x40
	return sum[:n], nil
}
