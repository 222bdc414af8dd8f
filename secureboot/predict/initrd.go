package predict

import (
	"bytes"
	"crypto"
	"fmt"
	"io"
)

// extras are the sections that the stub hands to the user space as files in
// /.extra, each in an archive of its own, in its order.
var extras = []struct {
	section, file string
	since         int
}{{".pcrsig", "tpm2-pcr-signature.json", 0}, {".pcrpkey", "tpm2-pcr-public-key.pem", 0}, {".profile", "profile", withProfiles}, {".osrel", "os-release", withProfiles}}

// initrd returns the hash of what the stub hands to the kernel: microcode,
// .initrd and the generated archives one after the other, each padded to four
// bytes; or of one of them alone as it is. It is nil without any.
func (im *image) initrd(sections map[string]section, stub int, bank crypto.Hash) ([]byte, error) {
	var parts []io.Reader
	var sizes []int64
	for _, name := range []string{".ucode", ".initrd"} {
		s, ok := sections[name]
		if !ok || s.virtual == 0 || name == ".ucode" && stub < withUcode {
			continue
		}
		if s.virtual > s.bytes+maxGap {
			return nil, fmt.Errorf("predict: section %q is larger in memory than in the file", name)
		}
		parts, sizes = append(parts, im.content(s)), append(sizes, s.virtual)
	}
	for _, x := range extras {
		s, ok := sections[x.section]
		if !ok || s.virtual == 0 || x.since > stub {
			continue
		}
		b, err := im.read(s, maxExtra)
		if err != nil {
			return nil, err
		}
		b = archive(x.file, b)
		parts, sizes = append(parts, bytes.NewReader(b)), append(sizes, int64(len(b)))
	}
	if len(parts) == 0 {
		return nil, nil
	}
	h := bank.New()
	for i, p := range parts {
		if _, err := io.Copy(h, p); err != nil {
			return nil, fmt.Errorf("predict: read image: %w", err)
		}
		if len(parts) > 1 {
			h.Write(make([]byte, -sizes[i]&3))
		}
	}
	return h.Sum(nil), nil
}

// archive is the newc archive that the stub makes of one file in /.extra: the
// directory (0555), the file (0444), the trailer.
func archive(name string, content []byte) []byte {
	var b bytes.Buffer
	entry := func(inode, mode int, path string, data []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path)+1, 0)
		b.WriteString(path)
		b.WriteByte(0)
		b.Write(make([]byte, -b.Len()&3))
		b.Write(data)
		b.Write(make([]byte, -b.Len()&3))
	}
	entry(1, 0o40555, ".extra", nil)
	entry(2, 0o100444, ".extra/"+name, content)
	b.WriteString("070701" + "00000000" + "00000000" + "00000000" + "00000000" + "00000001" + "00000000" + "00000000" + "00000000" + "00000000" + "00000000" + "00000000" +
		"0000000B" + "00000000" + "TRAILER!!!\x00\x00\x00\x00") // the one number in capitals
	return b.Bytes()
}
