package softtpm

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"hash"
	"io"
	"math/big"
)

const defaultExponent = 65537

// smallPrimes strike out most candidates before the costly test.
var smallPrimes = []uint64{3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113, 127,
	131, 137, 139, 149, 151, 157, 163, 167, 173, 179, 181, 191, 193, 197, 199, 211, 223, 227, 229, 233, 239, 241, 251, 257, 263, 269, 271, 277, 281, 283,
	293, 307, 311, 313, 317, 331, 337, 347, 349, 353, 359, 367, 373, 379, 383, 389, 397, 401, 409, 419, 421, 431, 433, 439, 443, 449, 457, 461, 463, 467,
	479, 487, 491, 499, 503, 509, 521, 523, 541, 547, 557, 563, 569, 571, 577, 587, 593, 599, 601, 607, 613, 617, 619, 631, 641, 643, 647, 653, 659, 661}

// prime finds a prime of the given size from r: it starts at a random number
// whose two highest bits are set and walks up the odd numbers, striking out
// those that a small prime divides.
func prime(r io.Reader, bits int, e uint64) (*big.Int, error) {
	const window = 1 << 13
	buf := make([]byte, bits/8)
	for {
		if _, err := io.ReadFull(r, buf); err != nil {
			return nil, err
		}
		buf[0] |= 0xC0
		buf[len(buf)-1] |= 1
		start := new(big.Int).SetBytes(buf)
		var composite [window / 2]bool // index i stands for start + 2i
		for _, p := range append(smallPrimes, e) {
			m := new(big.Int).Mod(start, new(big.Int).SetUint64(p)).Uint64()
			if p == e {
				// e must not divide candidate-1.
				m = (m + p - 1) % p
			}
			i := (p - m) % p
			if i%2 == 1 {
				i += p
			}
			for i /= 2; i < window/2; i += p {
				composite[i] = true
			}
		}
		for i, skip := range composite {
			if skip {
				continue
			}
			c := new(big.Int).Add(start, big.NewInt(int64(2*i)))
			if c.BitLen() == bits && c.ProbablyPrime(8) {
				return c, nil
			}
		}
	}
}

// generateRSA makes an RSA key whose primes come from r. The exponent must be
// an odd prime.
func generateRSA(r io.Reader, bits int, exponent uint32) (*rsa.PrivateKey, error) {
	if exponent == 0 {
		exponent = defaultExponent
	}
	for {
		p, err := prime(r, bits/2, uint64(exponent))
		if err != nil {
			return nil, err
		}
		q, err := prime(r, bits/2, uint64(exponent))
		if err != nil {
			return nil, err
		}
		if k, ok := keyFromPrimes(p, q, exponent); ok && k.N.BitLen() == bits {
			return k, nil
		}
	}
}

func keyFromPrimes(p, q *big.Int, exponent uint32) (*rsa.PrivateKey, bool) {
	if exponent == 0 {
		exponent = defaultExponent
	}
	if p.Cmp(q) == 0 {
		return nil, false
	}
	one := big.NewInt(1)
	phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
	d := new(big.Int).ModInverse(big.NewInt(int64(exponent)), phi)
	if d == nil {
		return nil, false
	}
	k := &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: int(exponent)},
		D:         d, Primes: []*big.Int{p, q},
	}
	k.Precompute()
	return k, true
}

// rsaFromPrime rebuilds a key from its modulus and one prime, as it is stored.
func rsaFromPrime(modulus, p []byte, exponent uint32) (*rsa.PrivateKey, bool) {
	n, pp := new(big.Int).SetBytes(modulus), new(big.Int).SetBytes(p)
	if pp.BitLen() < 256 || pp.Bit(0) == 0 || n.BitLen() < 1024 {
		return nil, false
	}
	q, rem := new(big.Int).DivMod(n, pp, new(big.Int))
	if rem.Sign() != 0 || q.BitLen() != pp.BitLen() {
		return nil, false
	}
	k, ok := keyFromPrimes(pp, q, exponent)
	if !ok || k.Validate() != nil {
		return nil, false
	}
	return k, true
}

func newHash(alg uint16) hash.Hash {
	switch alg {
	case algSHA1:
		return sha1.New()
	case algSHA384:
		return sha512.New384()
	case algSHA512:
		return sha512.New()
	}
	return sha256.New()
}

// rawRSA is the private operation without padding.
func rawRSA(k *rsa.PrivateKey, c []byte) ([]byte, bool) {
	m := new(big.Int).SetBytes(c)
	if m.Cmp(k.N) >= 0 {
		return nil, false
	}
	return m.Exp(m, k.D, k.N).FillBytes(make([]byte, k.Size())), true
}

// rawRSAPublic is the public operation without padding.
func rawRSAPublic(k *rsa.PublicKey, m []byte) ([]byte, bool) {
	c := new(big.Int).SetBytes(m)
	if c.Cmp(k.N) >= 0 {
		return nil, false
	}
	return c.Exp(c, big.NewInt(int64(k.E)), k.N).FillBytes(make([]byte, k.Size())), true
}

// decryptOAEP removes OAEP padding whose label is zero-terminated, as the TPM
// uses it (part 1, annex B.4).
func decryptOAEP(k *rsa.PrivateKey, alg uint16, label string, c []byte) ([]byte, bool) {
	if len(c) != k.Size() {
		return nil, false
	}
	m, err := rsa.DecryptOAEP(newHash(alg), nil, k, c, append([]byte(label), 0))
	return m, err == nil
}

func encryptOAEP(k *rsa.PublicKey, alg uint16, label, m []byte) ([]byte, bool) {
	c, err := rsa.EncryptOAEP(newHash(alg), rand.Reader, k, m, label)
	return c, err == nil
}

// rsaPublic returns the public RSA key of a public area.
func (p *public) rsaPublic() (*rsa.PublicKey, bool) {
	e := int(p.exponent)
	if e == 0 {
		e = defaultExponent
	}
	n := new(big.Int).SetBytes(p.unique)
	return &rsa.PublicKey{N: n, E: e}, n.BitLen() == int(p.bits)
}
