package predict

import (
	"cmp"
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// maxSections bounds the sections of an image; the UEFI images known have some
// twenty.
const maxSections = 96

// section is a section of a PE image.
type section struct {
	name          string
	virtual       int64 // size in memory
	offset, bytes int64 // in the file
}

// image is what Authenticode needs of a PE header.
type image struct {
	r        io.ReaderAt
	size     int64
	checksum int64 // offset of CheckSum
	certDir  int64 // offset of the security directory's entry; 0 without one
	certSize int64
	headers  int64 // SizeOfHeaders
	sections []section
}

var errPE = errors.New("predict: not a PE image")

func parsePE(r io.ReaderAt, size int64) (*image, error) {
	var dos [64]byte
	if size < 64 {
		return nil, errPE
	}
	if _, err := r.ReadAt(dos[:], 0); err != nil {
		return nil, fmt.Errorf("predict: read image: %w", err)
	}
	pe := int64(binary.LittleEndian.Uint32(dos[60:]))
	if dos[0] != 'M' || dos[1] != 'Z' || pe > size-24 {
		return nil, errPE
	}
	var coff [24]byte
	if _, err := r.ReadAt(coff[:], pe); err != nil {
		return nil, fmt.Errorf("predict: read image: %w", err)
	}
	n, optSize := int(binary.LittleEndian.Uint16(coff[6:])), int64(binary.LittleEndian.Uint16(coff[20:]))
	if string(coff[:4]) != "PE\x00\x00" || n > maxSections || optSize < 96 || pe+24+optSize+int64(n)*40 > size {
		return nil, errPE
	}
	opt := make([]byte, optSize)
	if _, err := r.ReadAt(opt, pe+24); err != nil {
		return nil, fmt.Errorf("predict: read image: %w", err)
	}
	im := &image{r: r, size: size, checksum: pe + 24 + 64, headers: int64(binary.LittleEndian.Uint32(opt[60:]))}
	var dirs int64
	switch binary.LittleEndian.Uint16(opt) {
	case 0x10B:
		dirs = 96
	case 0x20B:
		dirs = 112
	default:
		return nil, errPE
	}
	if optSize < dirs {
		return nil, errPE
	}
	if count := int64(binary.LittleEndian.Uint32(opt[dirs-4:])); count > 4 && optSize >= dirs+40 {
		im.certDir = pe + 24 + dirs + 32
		at, bytes := int64(binary.LittleEndian.Uint32(opt[dirs+32:])), int64(binary.LittleEndian.Uint32(opt[dirs+36:]))
		if bytes > 0 && at+bytes != size {
			return nil, fmt.Errorf("predict: signatures at %d to %d do not end the file of %d bytes", at, at+bytes, size)
		}
		im.certSize = bytes
	}
	if im.headers > size-im.certSize || im.headers < pe+24+optSize+int64(n)*40 {
		return nil, fmt.Errorf("predict: image has headers of %d bytes", im.headers)
	}
	return im, im.readSections(pe+24+optSize, n)
}

func (im *image) readSections(off int64, n int) error {
	b := make([]byte, 40*n)
	if _, err := im.r.ReadAt(b, off); err != nil {
		return fmt.Errorf("predict: read image: %w", err)
	}
	for i := range n {
		h := b[40*i:]
		s := section{name: strings.TrimRight(string(h[:8]), "\x00"), virtual: int64(binary.LittleEndian.Uint32(h[8:])),
			bytes: int64(binary.LittleEndian.Uint32(h[16:])), offset: int64(binary.LittleEndian.Uint32(h[20:]))}
		if s.bytes > 0 && (s.offset < im.headers || s.offset+s.bytes > im.size-im.certSize) {
			return fmt.Errorf("predict: section %q lies outside of the image", s.name)
		}
		im.sections = append(im.sections, s)
	}
	return nil
}

// Authenticode returns the hash of a PE image that Secure Boot verifies and
// PCR 4 holds: without checksum and signatures, so that signing again does not
// change it. Predict from the final, signed file: signing tools pad. The image
// is streamed.
func Authenticode(r io.ReaderAt, size int64, bank crypto.Hash) ([]byte, error) {
	if !bank.Available() {
		return nil, fmt.Errorf("predict: hash %v is not linked in", bank)
	}
	im, err := parsePE(r, size)
	if err != nil {
		return nil, err
	}
	h := bank.New()
	copyRange := func(from, to int64) error {
		if from > to {
			return errPE
		}
		_, err := io.Copy(h, io.NewSectionReader(r, from, to-from))
		return err
	}
	at := int64(0)
	skips := [][2]int64{{im.checksum, 4}}
	if im.certDir > 0 {
		skips = append(skips, [2]int64{im.certDir, 8})
	}
	for _, s := range skips {
		if err := copyRange(at, s[0]); err != nil {
			return nil, err
		}
		at = s[0] + s[1]
	}
	if err := copyRange(at, im.headers); err != nil {
		return nil, err
	}
	sorted := slices.DeleteFunc(slices.Clone(im.sections), func(s section) bool { return s.bytes == 0 })
	slices.SortStableFunc(sorted, func(a, b section) int { return cmp.Compare(a.offset, b.offset) })
	sum := im.headers
	for _, s := range sorted {
		if err := copyRange(s.offset, s.offset+s.bytes); err != nil {
			return nil, err
		}
		sum += s.bytes
	}
	if end := size - im.certSize; sum < end {
		if err := copyRange(sum, end); err != nil {
			return nil, err
		}
	}
	return h.Sum(nil), nil
}
