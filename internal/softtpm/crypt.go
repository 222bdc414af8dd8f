package softtpm

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"encoding/binary"
	"io"
)

// mac is HMAC over parts.
func mac(alg uint16, key []byte, parts ...[]byte) []byte {
	h := hashOf(alg)
	m := hmac.New(h.New, key)
	for _, p := range parts {
		m.Write(p)
	}
	return m.Sum(nil)
}

// kdfa is the key derivation of part 1, section 11.4.10.2 (SP 800-108 with
// HMAC in counter mode), for a whole number of bytes.
func kdfa(alg uint16, key []byte, label string, u, v []byte, bits int) []byte {
	var out []byte
	for i := uint32(1); len(out)*8 < bits; i++ {
		out = append(out, mac(alg, key, be32(i), []byte(label), []byte{0}, u, v, be32(uint32(bits)))...)
	}
	return out[:bits/8]
}

// kdfe is the key derivation of part 1, section 11.4.10.3 (SP 800-56A), for a
// whole number of bytes.
func kdfe(alg uint16, z []byte, label string, u, v []byte, bits int) []byte {
	var out []byte
	for i := uint32(1); len(out)*8 < bits; i++ {
		out = append(out, digest(alg, be32(i), z, []byte(label), []byte{0}, u, v)...)
	}
	return out[:bits/8]
}

// cfb is AES in CFB mode, in place.
func cfb(key, iv, data []byte, encrypt bool) {
	b, err := aes.NewCipher(key)
	if err != nil {
		return // key sizes were checked when the object or session was made
	}
	var reg, stream [aes.BlockSize]byte
	copy(reg[:], iv)
	for len(data) > 0 {
		b.Encrypt(stream[:], reg[:])
		n := min(len(data), aes.BlockSize)
		for i := range n {
			in := data[i]
			data[i] ^= stream[i]
			if encrypt {
				reg[i] = data[i]
			} else {
				reg[i] = in
			}
		}
		data = data[n:]
	}
}

// xorMask is the XOR obfuscation of part 1, section 11.4.7.3, in place.
func xorMask(alg uint16, key, u, v, data []byte) {
	mask := kdfa(alg, key, "XOR", u, v, len(data)*8)
	for i := range data {
		data[i] ^= mask[i]
	}
}

// stream is a deterministic source of bytes: the AES-CTR key stream of a seed.
type stream struct{ s cipher.Stream }

func newStream(seed []byte) io.Reader {
	k := digest(algSHA384, seed)
	b, err := aes.NewCipher(k[:32])
	if err != nil {
		panic(err) // 32 bytes are a key size
	}
	return &stream{cipher.NewCTR(b, k[32:48])}
}

func (s *stream) Read(p []byte) (int, error) {
	clear(p)
	s.s.XORKeyStream(p, p)
	return len(p), nil
}

// random returns n bytes from the TPM's source. A source that fails puts the
// TPM into failure mode.
func (t *TPM) random(n int) []byte {
	b := make([]byte, n)
	if _, err := io.ReadFull(t.cfg.Rand, b); err != nil {
		t.failed = true
	}
	return b
}

// stream returns a stream seeded from the TPM's source.
func (t *TPM) stream() io.Reader { return newStream(t.random(48)) }

// lengthPrefixed reads a big-endian length-prefixed value without a reader.
func lengthPrefixed(b []byte) (v, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if len(b) < 2+n {
		return nil, nil, false
	}
	return b[2 : 2+n], b[2+n:], true
}
