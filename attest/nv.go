package attest

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/internal/tpm"
)

const (
	maxNV     = 16 << 10 // the largest NV index read, in bytes
	nvChunk   = 512      // bytes in one command: less than every TPM's TPM_PT_NV_BUFFER_MAX
	maxChains = 8        // indices looked at for EK issuers
	maxInNV   = 32       // certificates taken from a series of indices
)

// readNV reads a whole NV index that its own auth value (empty) or the owner
// may read, as TCG certificate indices are. ErrNoKey says that it is not there.
func readNV(d *tpm.Device, index tpm2.TPMHandle) ([]byte, error) {
	pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(d)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, fmt.Errorf("%w: NV index 0x%08x", ErrNoKey, uint32(index))
	}
	if err != nil {
		return nil, fmt.Errorf("attest: NV index 0x%08x: %w", uint32(index), err)
	}
	info, err := pub.NVPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("attest: NV index 0x%08x: %w", uint32(index), err)
	}
	size := int(info.DataSize)
	if size > maxNV || !info.Attributes.Written {
		return nil, fmt.Errorf("%w: NV index 0x%08x has %d bytes or was never written", ErrNoKey, uint32(index), size)
	}
	data := make([]byte, 0, size)
	for len(data) < size {
		r, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: index, Name: pub.NVName, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: pub.NVName},
			Size:       uint16(min(nvChunk, size-len(data))), Offset: uint16(len(data)),
		}.Execute(d)
		if err != nil {
			return nil, fmt.Errorf("attest: read NV index 0x%08x: %w", uint32(index), err)
		}
		if len(r.Data.Buffer) == 0 {
			return nil, fmt.Errorf("attest: read NV index 0x%08x: the TPM gave nothing", uint32(index))
		}
		data = append(data, r.Data.Buffer...)
	}
	return data, nil
}

// readChain returns the issuers that the TPM's maker left in NV (TCG EK
// Credential Profile 2.5, section 2.2.1.5.2). What can't be read is left out:
// the chain is checked by whom it convinces.
func readChain(d *tpm.Device) []*x509.Certificate {
	var contents [][]byte
	for i := range tpm2.TPMHandle(maxChains) {
		b, err := readNV(d, tpm.NVEKChainFirst+i)
		if err != nil {
			break
		}
		contents = append(contents, b)
	}
	certs, _ := certificatesIn(contents)
	return certs
}

// certificatesIn finds the certificates in the contents of consecutive NV
// indices: several in one, one over several because an index is small, each
// behind the TCG's header or not, with padding around. skipped counts the
// indices in which something else was.
func certificatesIn(contents [][]byte) (certs []*x509.Certificate, skipped int) {
	var open []byte // a certificate that goes on in the next index
	for _, b := range contents {
		b, open = append(open, b...), nil
		for len(b) > 0 {
			if b[0] == 0 || b[0] == 0xff {
				b = b[1:]
				continue
			}
			if len(b) > 5 && b[0] == 0x10 && b[1] == 0x01 && b[2] == 0 { // TCG PC Client Specific Implementation 1.21, section 7.3.2
				b = b[5:]
			}
			if b[0] == 0x30 && len(b) < 4 {
				open = b
				break
			}
			if b[0] != 0x30 || b[1] != 0x82 { // a certificate has 256 to 65535 bytes
				skipped++
				break
			}
			size := 4 + int(b[2])<<8 + int(b[3])
			if size > maxCertificate {
				skipped++
				break
			}
			if size > len(b) {
				open = b
				break
			}
			c, err := x509.ParseCertificate(b[:size])
			if err != nil {
				skipped++
			} else if len(certs) < maxInNV {
				certs = append(certs, c)
			}
			b = b[size:]
		}
	}
	if open != nil {
		skipped++
	}
	return certs, skipped
}

// InitialCertificates returns the certificates that the machine's maker left
// in the TPM for its IAK and IDevID, with their issuers (TCG Registry of
// Reserved TPM 2.0 Handles, 0x01C90000 to 0x01C901FF), in order of index. They
// are not verified. What is no certificate is left out.
func (n *Node) InitialCertificates(ctx context.Context) ([]*x509.Certificate, error) {
	var list []*x509.Certificate
	err := n.do(ctx, func(d *tpm.Device) error {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: uint32(tpm.NVIDevIDCertFirst), PropertyCount: 64}.Execute(d)
		if err != nil {
			return fmt.Errorf("attest: list NV indices: %w", err)
		}
		handles, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			return fmt.Errorf("attest: list NV indices: %w", err)
		}
		var contents [][]byte
		for _, h := range handles.Handle {
			if h < tpm.NVIDevIDCertFirst || h > tpm.NVIDevIDCertLast {
				continue
			}
			b, err := readNV(d, h)
			if errors.Is(err, ErrNoKey) {
				n.c.Log.Warn("NV index can't be a certificate", "event", "attest.devid-unreadable", "index", fmt.Sprintf("0x%08x", uint32(h)), "error", err.Error())
				continue
			}
			if err != nil {
				return err
			}
			if h&0xfff0 == 0x0010 && len(b) <= 68 { // a policy of a key that can be recovered (TCG Keys for Device Identity and Attestation, section 7.3.2)
				continue
			}
			contents = append(contents, b)
		}
		var skipped int
		if list, skipped = certificatesIn(contents); skipped > 0 {
			n.c.Log.Warn("NV indices of the maker hold what is no certificate", "event", "attest.devid-unreadable", "indices", skipped)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// writeNV makes an index of ours anew with the content given; the owner may write, everybody may read.
func writeNV(d *tpm.Device, owner tpm2.AuthHandle, index tpm2.TPMHandle, data []byte) error {
	if len(data) > 2048 {
		return fmt.Errorf("attest: %d bytes for NV index 0x%08x, limit 2048: give the node a shorter chain", len(data), uint32(index))
	}
	if err := undefineNV(d, owner, index); err != nil {
		return err
	}
	public := tpm2.TPMSNVPublic{
		NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(data)),
		Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true},
	}
	if _, err := (tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: tpm2.New2B(public)}).Execute(d); err != nil {
		return fmt.Errorf("attest: define NV index 0x%08x: %w", uint32(index), err)
	}
	for off := 0; off < len(data); off += nvChunk {
		pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(d) // the first write changes the name
		if err != nil {
			return fmt.Errorf("attest: NV index 0x%08x: %w", uint32(index), err)
		}
		_, err = tpm2.NVWrite{
			AuthHandle: owner, NVIndex: tpm2.NamedHandle{Handle: index, Name: pub.NVName},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: data[off:min(off+nvChunk, len(data))]}, Offset: uint16(off),
		}.Execute(d)
		if err != nil {
			return fmt.Errorf("attest: write NV index 0x%08x: %w", uint32(index), err)
		}
	}
	return nil
}

func undefineNV(d *tpm.Device, owner tpm2.AuthHandle, index tpm2.TPMHandle) error {
	pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(d)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("attest: NV index 0x%08x: %w", uint32(index), err)
	}
	_, err = tpm2.NVUndefineSpace{AuthHandle: owner, NVIndex: tpm2.NamedHandle{Handle: index, Name: pub.NVName}}.Execute(d)
	if err != nil {
		return fmt.Errorf("attest: undefine NV index 0x%08x: %w", uint32(index), err)
	}
	return nil
}
