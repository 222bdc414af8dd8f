package ekimport

import (
	"crypto/fips140"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/attest/registry"
)

// ErrNotHMACKey says that an object to be imported is not the key that this
// protocol uses. A node imports nothing else.
var ErrNotHMACKey = errors.New("ekimport: not a restricted HMAC key for SHA-256")

// Challenge opens an enrolment (cloud to node).
type Challenge struct {
	Version   int               `json:"version"`
	ID        string            `json:"id"`
	Device    registry.DeviceID `json:"device"`
	Nonce     []byte            `json:"nonce"`     // 32 bytes
	Public    []byte            `json:"public"`    // TPMT_PUBLIC of the HMAC key
	Duplicate []byte            `json:"duplicate"` // content of its TPM2B_PRIVATE, for the endorsement key
	Seed      []byte            `json:"seed"`      // content of the TPM2B_ENCRYPTED_SECRET
	Expires   time.Time         `json:"expires"`
}

// Response closes it (node to cloud).
type Response struct {
	Version     int    `json:"version"`
	ID          string `json:"id"`
	AKPublic    []byte `json:"ak_public"`    // TPMT_PUBLIC of the attestation key
	AKCertify   []byte `json:"ak_certify"`   // TPMS_ATTEST of that key by the HMAC key
	AKSignature []byte `json:"ak_signature"` // TPMT_SIGNATURE over AKCertify
	KeyPublic   []byte `json:"key_public"`   // TPMT_PUBLIC of the TLS key
	Certify     []byte `json:"certify"`      // TPMS_ATTEST of that key by the attestation key
	Signature   []byte `json:"signature"`    // TPMT_SIGNATURE over Certify
	CSR         []byte `json:"csr"`          // PKCS #10 (DER), signed by the TLS key
}

// Imported is an HMAC key that one TPM can import, in the TPM's own encodings.
type Imported struct {
	Public    []byte // TPMT_PUBLIC
	Duplicate []byte // content of the TPM2B_PRIVATE
	Seed      []byte // content of the TPM2B_ENCRYPTED_SECRET
}

// New makes an HMAC key of 32 random bytes and encrypts it for the TPM that
// holds the storage key whose public area is given, mostly an endorsement key
// of a TCG template. key is the secret: clear it after use.
func New(parent tpm2.TPMTPublic) (im *Imported, key []byte, err error) {
	to, err := tpm2.ImportEncapsulationKey(&parent)
	if err != nil {
		return nil, nil, fmt.Errorf("ekimport: parent key: %w", err)
	}
	key = make([]byte, sha256.Size)
	rand.Read(key)
	blind := make([]byte, sha256.Size)
	rand.Read(blind)
	unique := sha256.Sum256(append(append(make([]byte, 0, 2*sha256.Size), blind...), key...))
	public := template(unique[:])
	sensitive := tpm2.Marshal(tpm2.TPMTSensitive{
		SensitiveType: tpm2.TPMAlgKeyedHash,
		SeedValue:     tpm2.TPM2BDigest{Buffer: blind},
		Sensitive:     tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BSensitiveData{Buffer: key}),
	})
	defer clear(sensitive)
	name, err := tpm2.ObjectName(&public)
	if err != nil {
		return nil, nil, fmt.Errorf("ekimport: %w", err)
	}
	im = &Imported{Public: tpm2.Marshal(public)}
	// AES in CFB mode, which TPM2_Import expects and Go's FIPS module does not
	// have (TPM 2.0 Library, part 1, section 23).
	fips140.WithoutEnforcement(func() {
		im.Duplicate, im.Seed, err = tpm2.CreateDuplicate(rand.Reader, to, name.Buffer, sensitive)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("ekimport: encrypt: %w", err)
	}
	return im, key, nil
}

// template is the public area of the HMAC key. It can't leave the TPM again:
// its policy for that is one that nothing satisfies.
func template(unique []byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{
			Scheme:  tpm2.TPMAlgHMAC,
			Details: tpm2.NewTPMUSchemeKeyedHash(tpm2.TPMAlgHMAC, &tpm2.TPMSSchemeHMAC{HashAlg: tpm2.TPMAlgSHA256}),
		}}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: unique}),
	}
}

// Check returns ErrNotHMACKey unless a TPMT_PUBLIC is that of a key as New
// makes it.
func Check(public []byte) error {
	const unique = sha256.Size
	if len(public) < unique || string(public) != string(tpm2.Marshal(template(public[len(public)-unique:]))) {
		return ErrNotHMACKey
	}
	return nil
}
