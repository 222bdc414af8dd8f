package fscrypt

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"

	"filippo.io/age"
	"golang.org/x/crypto/chacha20poly1305"
)

// stanzaType marks the age stanza that holds an object's file key, wrapped
// under a key derived from the volume key, the volume and the object's id. Ids
// are random and never used twice, and the manifest says which object is which
// version of which name: so an object does not open in place of another one,
// nor of a newer version of itself.
const stanzaType = "trusttree.fscrypt.v1"

const fileKeySize = 16

// objectKey is the age recipient and identity of one object.
type objectKey struct {
	vk     *Secret
	volume string
	id     string
}

var (
	_ age.Recipient = objectKey{}
	_ age.Identity  = objectKey{}
)

func newObjectID() string {
	var id [16]byte
	rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

func (k objectKey) wrapKey(salt []byte) ([]byte, error) {
	return derive(k.vk, chacha20poly1305.KeySize, salt, "object "+k.volume+" "+k.id)
}

// Wrap implements age.Recipient.
func (k objectKey) Wrap(fileKey []byte) ([]*age.Stanza, error) {
	salt := make([]byte, 16)
	rand.Read(salt)
	key, err := k.wrapKey(salt)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	a, err := chacha20poly1305.New(key)
	if err != nil {
		return nil, err
	}
	// The wrapping key is used once, so the nonce may be fixed.
	body := a.Seal(nil, make([]byte, a.NonceSize()), fileKey, nil)
	return []*age.Stanza{{Type: stanzaType, Args: []string{base64.RawStdEncoding.EncodeToString(salt)}, Body: body}}, nil
}

// Unwrap implements age.Identity.
func (k objectKey) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	if len(stanzas) != 1 || stanzas[0].Type != stanzaType || len(stanzas[0].Args) != 1 {
		return nil, fmt.Errorf("not an object of this volume: %w", age.ErrIncorrectIdentity)
	}
	salt, err := base64.RawStdEncoding.Strict().DecodeString(stanzas[0].Args[0])
	if err != nil || len(salt) != 16 || len(stanzas[0].Body) != fileKeySize+chacha20poly1305.Overhead {
		return nil, fmt.Errorf("malformed stanza: %w", age.ErrIncorrectIdentity)
	}
	key, err := k.wrapKey(salt)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	a, err := chacha20poly1305.New(key)
	if err != nil {
		return nil, err
	}
	fileKey, err := a.Open(nil, make([]byte, a.NonceSize()), stanzas[0].Body, nil)
	if err != nil {
		return nil, fmt.Errorf("object is not the one that the manifest names: %w", age.ErrIncorrectIdentity)
	}
	return fileKey, nil
}
