// Package keysize refuses certificates whose keys are larger than anybody
// needs: the time that one signature takes grows with the square of an RSA
// key's size, and no context ends it.
package keysize

import (
	"crypto/rsa"
	"crypto/x509"
	"fmt"
)

// MaxRSABits is the largest RSA key with which a signature is checked, as in
// crypto/tls.
const MaxRSABits = 8192

// Check returns an error for a certificate with a larger key. Call it before a
// signature by that key is checked.
func Check(c *x509.Certificate) error {
	if k, ok := c.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() > MaxRSABits {
		return fmt.Errorf("its RSA key has %d bits; the limit is %d", k.N.BitLen(), MaxRSABits)
	}
	return nil
}
