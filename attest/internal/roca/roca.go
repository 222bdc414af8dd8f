// Package roca tells RSA keys that were made by a broken library.
package roca

import "math/big"

// Weak reports whether an RSA modulus has the fingerprint of the library in
// Infineon chips whose keys can be factored (Nemec et al., "The Return of
// Coppersmith's Attack", section 2): it is a power of 65537 modulo each small
// prime. A random modulus is one with probability below 2^-27.
func Weak(n *big.Int) bool {
	for p := uint64(3); p <= 167; p += 2 {
		if !big.NewInt(int64(p)).ProbablyPrime(0) {
			continue
		}
		residue := new(big.Int).Mod(n, new(big.Int).SetUint64(p)).Uint64()
		power, found := uint64(1), false
		for range p {
			if power == residue {
				found = true
				break
			}
			power = power * 65537 % p
		}
		if !found {
			return false
		}
	}
	return true
}
