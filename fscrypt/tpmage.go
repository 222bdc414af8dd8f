package fscrypt

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"

	"filippo.io/age"
	"golang.org/x/crypto/chacha20poly1305"
)

// tpmStanza marks an age stanza that holds a TPM slot, and the file key
// wrapped under the slot's secret.
const tpmStanza = "trusttree.fscrypt.tpm.v1"

// maxStanza bounds the slot in a stanza, in bytes.
const maxStanza = 16 << 10

type tpmStanzaBody struct {
	Version int    `json:"version"`
	Slot    Slot   `json:"slot"`
	FileKey []byte `json:"file_key"`
}

// Age returns this protector as an age recipient and identity, for age files
// that only this TPM decrypts, in an approved boot state, without a volume.
// Each file is sealed on its own. Decrypting closes the latch, so that one
// file can be decrypted in each boot, unless UnsafeNoLatch is set. Counter,
// Share, Revocation and Keep play no part. ctx bounds the TPM's work.
func (p *TPM) Age(ctx context.Context) interface {
	age.Recipient
	age.Identity
} {
	q := *p
	q.Share, q.Revocation, q.Keep = 0, 0, nil
	return &ageTPM{ctx, &q}
}

type ageTPM struct {
	ctx context.Context
	p   *TPM
}

func ageBinding() Binding { return Binding{Volume: "age", Label: "age file", Slot: "tpm"} }

func fileKeyWrap(s *Secret, f func(key []byte) error) error {
	key, err := derive(s, chacha20poly1305.KeySize, nil, "age file key")
	if err != nil {
		return err
	}
	defer clear(key)
	return f(key)
}

// Wrap implements age.Recipient.
func (a *ageTPM) Wrap(fileKey []byte) (_ []*age.Stanza, err error) {
	defer boundary("seal an age file", &err)
	s := randomSecret()
	defer s.Erase()
	body := tpmStanzaBody{Version: 1}
	// Sealing is no opening: the latch stays as it is.
	b := ageBinding()
	b.notes = new(notes)
	if body.Slot, err = a.p.Wrap(a.ctx, s, b); err != nil {
		return nil, err
	}
	err = fileKeyWrap(s, func(key []byte) error {
		c, err := chacha20poly1305.NewX(key)
		if err != nil {
			return err
		}
		nonce := make([]byte, c.NonceSize())
		rand.Read(nonce)
		body.FileKey = c.Seal(nonce, nonce, fileKey, nil)
		return nil
	})
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return []*age.Stanza{{Type: tpmStanza, Body: raw}}, nil
}

// Unwrap implements age.Identity.
func (a *ageTPM) Unwrap(stanzas []*age.Stanza) (_ []byte, err error) {
	defer boundary("unseal an age file", &err)
	for _, st := range stanzas {
		if st.Type != tpmStanza || len(st.Body) > maxStanza {
			continue
		}
		return a.unwrap(st.Body)
	}
	return nil, fmt.Errorf("no TPM slot: %w", age.ErrIncorrectIdentity)
}

func (a *ageTPM) unwrap(raw []byte) (fileKey []byte, err error) {
	var body tpmStanzaBody
	if err := strictJSON(raw, &body); err != nil {
		return nil, err
	}
	if body.Version != 1 || len(body.FileKey) != chacha20poly1305.NonceSizeX+fileKeySize+chacha20poly1305.Overhead {
		return nil, fmt.Errorf("stanza: %w", ErrTampered)
	}
	s, err := a.p.Unwrap(a.ctx, body.Slot, ageBinding())
	if errors.Is(err, ErrTPMChanged) {
		return nil, fmt.Errorf("%w: %w", age.ErrIncorrectIdentity, err)
	}
	if err != nil {
		return nil, err
	}
	defer s.Erase()
	err = fileKeyWrap(s, func(key []byte) error {
		c, err := chacha20poly1305.NewX(key)
		if err != nil {
			return err
		}
		n := c.NonceSize()
		if fileKey, err = c.Open(nil, body.FileKey[:n], body.FileKey[n:], nil); err != nil {
			return fmt.Errorf("file key: %w", ErrTampered)
		}
		return nil
	})
	return fileKey, err
}
