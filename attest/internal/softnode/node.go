package softnode

import (
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/fips140"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/registry"
)

// Node is an honest node with its keys in memory and an endorsement key of
// type P-256.
type Node struct {
	EK      *ecdh.PrivateKey // nil where EKRSA is there
	EKRSA   *rsa.PrivateKey
	EKCert  [][]byte
	AK, Key *Key
	PCRs    map[int][]byte // of SHA-256; others are zero
	Bodies  []attest.Body
	Reset   uint32
	Device  registry.DeviceID
	// Hierarchy is where the attestation key seems to be: endorsement.
	Hierarchy uint32
	Firmware  uint64

	started time.Time
}

// NewNode makes a node whose endorsement key the maker vouches for.
func NewNode(m *Maker) *Node {
	ek := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	n := &Node{
		EK: must(ek.ECDH()), AK: NewKey(P256(), AKAttributes), Key: NewKey(P256(), KeyAttributes), Reset: 1, Hierarchy: 0x4000000B, Firmware: 1, started: time.Now(),
		EKCert: [][]byte{m.Sign(m.EKTemplate(ek.Public()), ek.Public()), m.Issuer.Raw},
	}
	n.Device = must(registry.IDOf(ek.Public()))
	return n
}

// NewNodeRSA is NewNode with an endorsement key of the high range, RSA-3072 or
// RSA-4096.
func NewNodeRSA(m *Maker, bits int) *Node {
	n := NewNode(m)
	n.EK, n.EKRSA = nil, must(rsa.GenerateKey(rand.Reader, bits))
	n.EKCert[0] = m.Sign(m.EKTemplate(n.EKRSA.Public()), n.EKRSA.Public())
	n.Device = must(registry.IDOf(n.EKRSA.Public()))
	return n
}

// EnrollmentRequest is the first message.
func (n *Node) EnrollmentRequest() *attest.EnrollmentRequest {
	return &attest.EnrollmentRequest{Version: 1, EKCertificates: n.EKCert, AKPublic: n.AK.Public}
}

// Activate answers the challenge.
func (n *Node) Activate(c *attest.ActivationChallenge) (*attest.ActivationResponse, error) {
	secret, err := n.open(c.Credential, c.Secret)
	if err != nil {
		return nil, err
	}
	spki := n.LeafSPKI()
	data := Attested{Kind: 0x8017, Name: Name(n.Key.Public), ExtraData: fields([]byte("trusttree attest v1"), []byte("enroll"), n.Device[:], c.Nonce, nil, spki[:], fields())}.Encode()
	return &attest.ActivationResponse{
		Version: 1, ID: c.ID, Secret: secret, KeyPublic: n.Key.Public, Certify: data, Signature: n.AK.Sign(data),
		CSR: must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, n.Key.Signer)),
	}, nil
}

// open is TPM2_ActivateCredential (TPM 2.0 Library, part 1, section 24).
func (n *Node) open(idObject, secret []byte) ([]byte, error) {
	bad := errors.New("softnode: credential")
	if n.EKRSA != nil {
		seed, err := rsa.DecryptOAEP(sha512.New384(), nil, n.EKRSA, secret, []byte("IDENTITY\x00"))
		if err != nil {
			return nil, err
		}
		return n.unwrap(crypto.SHA384, 256, seed, idObject)
	}
	if len(secret) != 68 || len(idObject) < 36 {
		return nil, bad
	}
	x, y := secret[2:34], secret[36:68]
	eph, err := ecdh.P256().NewPublicKey(append(append([]byte{4}, x...), y...))
	if err != nil {
		return nil, err
	}
	own := n.EK.PublicKey().Bytes()[1:33]
	seed := tpm2.KDFe(crypto.SHA256, must(n.EK.ECDH(eph)), "IDENTITY", x, own, 256)
	return n.unwrap(crypto.SHA256, 128, seed, idObject)
}

// unwrap opens a TPMS_ID_OBJECT with its seed.
func (n *Node) unwrap(hash crypto.Hash, aesBits int, seed, idObject []byte) ([]byte, error) {
	size := hash.Size()
	if len(idObject) < size+4 {
		return nil, errors.New("softnode: credential")
	}
	mac, enc := idObject[2:2+size], idObject[2+size:]
	h := hmac.New(hash.New, tpm2.KDFa(hash, seed, "INTEGRITY", nil, nil, 8*size))
	h.Write(enc)
	h.Write(Name(n.AK.Public))
	if !hmac.Equal(mac, h.Sum(nil)) {
		return nil, errors.New("softnode: credential")
	}
	block := must(aes.NewCipher(tpm2.KDFa(hash, seed, "STORAGE", Name(n.AK.Public), nil, aesBits)))
	plain := make([]byte, len(enc))
	fips140.WithoutEnforcement(func() { // it stands for a TPM
		cipher.NewCFBDecrypter(block, make([]byte, 16)).XORKeyStream(plain, enc) //lint:ignore SA1019 the TPM's mode
	})
	return plain[2:], nil
}

// LeafSPKI returns the hash of the TLS key.
func (n *Node) LeafSPKI() [32]byte {
	return sha256.Sum256(must(x509.MarshalPKIXPublicKey(n.Key.Signer.Public())))
}

// Session is a session of the node with a binding made of its nonce.
func (n *Node) Session(nonce []byte) attest.Session {
	return attest.Session{Device: n.Device, Purpose: attest.PurposeAttest, LeafSPKI: n.LeafSPKI(), Binding: sha256.Sum256(nonce)}
}

// CertifyKey is the certification of a key for evidence in a session.
func (n *Node) CertifyKey(s attest.Session, nonce, public []byte) []byte {
	q := fields([]byte("trusttree attest v1"), []byte("key"), n.Device[:], nonce, s.Binding[:], s.LeafSPKI[:], fields())
	return Attested{Kind: 0x8017, Name: Name(public), ExtraData: q}.Encode()
}

// Evidence answers a challenge in a session.
func (n *Node) Evidence(_ context.Context, s attest.Session, c *attest.Challenge) *attest.Evidence {
	var list []PCR
	for _, sel := range c.PCRs {
		for _, p := range sel.PCRs {
			v := n.PCRs[p]
			if v == nil || sel.Bank != crypto.SHA256 {
				v = make([]byte, sel.Bank.Size())
			}
			list = append(list, PCR{sel.Bank, p, v})
		}
	}
	var parts [][]byte
	for _, b := range n.Bodies {
		parts = append(parts, []byte(b.MediaType), b.Data)
	}
	q := fields([]byte("trusttree attest v1"), []byte(s.Purpose), n.Device[:], c.Nonce, s.Binding[:], s.LeafSPKI[:], fields(parts...))
	data := Attested{
		Signer: Qualified(n.Hierarchy, n.AK.Public), ExtraData: q, PCRs: list,
		Clock: uint64(time.Since(n.started).Milliseconds()), Reset: n.Reset, Safe: 1, Firmware: n.Firmware,
	}.Encode()
	return &attest.Evidence{Version: 1, Challenge: c.ID, Quote: data, Signature: n.AK.Sign(data), PCRValues: Values(list), Bodies: n.Bodies}
}

func fields(parts ...[]byte) []byte {
	h := sha256.New()
	for _, p := range parts {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(p))))
		h.Write(p)
	}
	return h.Sum(nil)
}
