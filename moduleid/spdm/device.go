package spdm

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/trusttree/trusttree/moduleid"
)

// Object identifiers in certificates: of DSP0274, of X.509, and of the TCG's
// DICE Attestation Architecture 1.1, section 6.1.1.
var (
	oidExtension        = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 412, 274, 6}
	oidHardwareIdentity = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 412, 274, 2}
	oidOtherName        = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 412, 274, 1}
	oidSubjectAltName   = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidTcbInfo          = asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1}
)

// Indices of what certificates say about firmware, beside those of signed
// measurements, which are below 256. The layer is added.
const (
	IndexFWID = 0x100 // kind "dice-fwid": digest of a layer's firmware
	IndexSVN  = 0x200 // kind "dice-svn": its security version, as 8 bytes big-endian
)

const maxLayer = 0xff

// identify finds the certificate that names the device for life: the one with
// the hardware identity, or the leaf where no alias certificates are used. It
// also takes over what DICE certificates say about the firmware.
func identify(t *transcript, p *moduleid.Proof) error {
	p.Handled = []asn1.ObjectIdentifier{oidExtension, oidTcbInfo}
	device := -1
	for i, c := range p.Chain {
		for _, x := range c.Extensions {
			switch {
			case x.Id.Equal(oidExtension):
				ids, err := spdmIDs(x.Value)
				if err != nil {
					return err
				}
				for _, id := range ids {
					if id.Equal(oidHardwareIdentity) {
						// A device could put it into its aliases too: the one
						// nearest to the root was put there by the maker.
						device = i
					}
				}
			case x.Id.Equal(oidSubjectAltName) && bytes.Contains(x.Value, otherNameDER):
				p.Handled = append(p.Handled, oidSubjectAltName)
			case x.Id.Equal(oidTcbInfo):
				m, err := tcbInfo(x.Value, layerOf(p.Chain, i))
				if err != nil {
					return err
				}
				p.Measurements = append(p.Measurements, m...)
			}
		}
	}
	if device < 0 && t.flags&capAlias != 0 {
		return malformed(errors.New("spdm: an alias chain in which no certificate has the hardware identity, so that nothing names the device"))
	}
	p.Device = max(device, 0)
	return nil
}

var otherNameDER, _ = asn1.Marshal(oidOtherName)

// spdmIDs reads DSP0274's extension: a sequence of sequences, each with an
// identifier first.
func spdmIDs(der []byte) ([]asn1.ObjectIdentifier, error) {
	bad := malformed(errors.New("spdm: a certificate's SPDM extension is malformed"))
	in := cryptobyte.String(der)
	var list cryptobyte.String
	if !in.ReadASN1(&list, cbasn1.SEQUENCE) || !in.Empty() {
		return nil, bad
	}
	var ids []asn1.ObjectIdentifier
	for !list.Empty() {
		var item cryptobyte.String
		var id asn1.ObjectIdentifier
		if !list.ReadASN1(&item, cbasn1.SEQUENCE) || !item.ReadASN1ObjectIdentifier(&id) {
			return nil, bad
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// layerOf is the layer of a certificate that does not name it: its distance
// from the root.
func layerOf(chain []*x509.Certificate, i int) int { return len(chain) - 1 - i }

func tagged(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific() }

// tcbInfo reads a DiceTcbInfo: the digests of the layer's firmware and its
// security version. A layer that says it is not configured, not secure, in
// recovery or in debug mode is refused.
func tcbInfo(der []byte, layer int) ([]moduleid.Measurement, error) {
	bad := malformed(errors.New("spdm: a certificate's DiceTcbInfo is malformed"))
	in := cryptobyte.String(der)
	var info cryptobyte.String
	if !in.ReadASN1(&info, cbasn1.SEQUENCE) || !in.Empty() {
		return nil, bad
	}
	var skip, svn, lay, fwids, flags cryptobyte.String
	var hasSVN, hasLayer, hasFWIDs, hasFlags, has bool
	ok := info.ReadOptionalASN1(&skip, &has, tagged(0)) && // vendor
		info.ReadOptionalASN1(&skip, &has, tagged(1)) && // model
		info.ReadOptionalASN1(&skip, &has, tagged(2)) && // version
		info.ReadOptionalASN1(&svn, &hasSVN, tagged(3)) &&
		info.ReadOptionalASN1(&lay, &hasLayer, tagged(4)) &&
		info.ReadOptionalASN1(&skip, &has, tagged(5)) && // index
		info.ReadOptionalASN1(&fwids, &hasFWIDs, tagged(6).Constructed()) &&
		info.ReadOptionalASN1(&flags, &hasFlags, tagged(7)) &&
		info.ReadOptionalASN1(&skip, &has, tagged(8)) && // vendorInfo
		info.ReadOptionalASN1(&skip, &has, tagged(9)) && // type
		info.ReadOptionalASN1(&skip, &has, tagged(10)) // flagsMask
	if !ok || !info.Empty() {
		return nil, bad
	}
	if hasLayer {
		if layer = int(small(lay)); layer < 0 || layer > maxLayer {
			return nil, bad
		}
	}
	if hasFlags {
		for _, b := range flags[min(1, len(flags)):] { // after the count of unused bits
			if b != 0 {
				return nil, &moduleid.RefusedError{Findings: []moduleid.Finding{{Reason: moduleid.ReasonMeasurement,
					Detail: fmt.Sprintf("layer %d says that it is unconfigured, insecure, in recovery or in debug mode (flags %x)", layer, []byte(flags))}}}
			}
		}
	}
	var out []moduleid.Measurement
	if hasSVN {
		n := small(svn)
		if n < 0 {
			return nil, bad
		}
		value := make([]byte, 8)
		for i := range value {
			value[i] = byte(n >> (56 - 8*i))
		}
		out = append(out, moduleid.Measurement{Index: IndexSVN + layer, Kind: "dice-svn", Value: value})
	}
	for hasFWIDs && !fwids.Empty() {
		var fwid, digest cryptobyte.String
		var alg asn1.ObjectIdentifier
		if !fwids.ReadASN1(&fwid, cbasn1.SEQUENCE) || !fwid.ReadASN1ObjectIdentifier(&alg) || !fwid.ReadASN1(&digest, cbasn1.OCTET_STRING) || len(digest) < 32 {
			return nil, bad
		}
		out = append(out, moduleid.Measurement{Index: IndexFWID + layer, Kind: "dice-fwid", Value: bytes.Clone(digest)})
	}
	return out, nil
}

// small reads an integer's content of up to 7 bytes, or returns -1.
func small(p []byte) int64 {
	if len(p) == 0 || len(p) > 7 || p[0]&0x80 != 0 {
		return -1
	}
	var n int64
	for _, b := range p {
		n = n<<8 | int64(b)
	}
	return n
}
