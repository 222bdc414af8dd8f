package attest

import (
	"context"
	"crypto"
	"crypto/fips140"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/attest/internal/strict"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/attest/registry"
)

// pending is what the ChallengeStore keeps between Begin and Complete.
type pending struct {
	Version    int               `json:"version"`
	Purpose    string            `json:"purpose"`
	Device     registry.DeviceID `json:"device"`
	Nonce      []byte            `json:"nonce"`
	Expires    time.Time         `json:"expires"`
	SecretHash []byte            `json:"secret_hash"` // SHA-256: the store never sees the secret
	Chain      [][]byte          `json:"chain"`
	AKPublic   []byte            `json:"ak_public"`
	Token      []byte            `json:"token,omitempty"`
	ImportKey  []byte            `json:"import_key,omitempty"` // of BeginImport, in place of secret and AK
}

func (r *Registrar) put(ctx context.Context, p pending) (id string, err error) {
	id = newID()
	value, err := json.Marshal(p)
	if err != nil {
		return "", fmt.Errorf("attest: challenge: %w", err)
	}
	defer clear(value)
	if err := r.c.Challenges.Put(ctx, id, value, p.Expires); err != nil {
		return "", fmt.Errorf("attest: store challenge: %w", err)
	}
	return id, nil
}

func takePending(ctx context.Context, s registry.ChallengeStore, id, purpose string, now time.Time) (*pending, error) {
	value, err := s.Take(ctx, id)
	if errors.Is(err, registry.ErrNotFound) {
		return nil, reason.Because(reason.NoActivation, ErrChallenge)
	}
	if err != nil {
		return nil, fmt.Errorf("attest: take challenge: %w", err)
	}
	p := &pending{}
	if err := strict.Decode(value, p); err != nil || p.Version != messageVersion {
		return nil, reason.Because(reason.StoredChallenge, fmt.Errorf("%w: stored challenge can't be read", ErrChallenge))
	}
	if p.Purpose != purpose {
		return nil, reason.Because(reason.OtherPurpose, fmt.Errorf("%w: it is for another purpose", ErrChallenge))
	}
	if !now.Before(p.Expires) {
		return nil, reason.Because(reason.Expired, ErrExpired)
	}
	return p, nil
}

func newNonce() []byte {
	n := make([]byte, nonceSize)
	rand.Read(n)
	return n
}

func newID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// makeCredential is TPM2_MakeCredential in software. The endorsement key's
// public area is computed from the certified key.
func makeCredential(ek crypto.PublicKey, name, secret []byte) (credential, seed []byte, err error) {
	t, err := templateOf(ek)
	if err != nil {
		return nil, nil, err
	}
	pub, err := t.public(ek)
	if err != nil {
		return nil, nil, err
	}
	key, err := tpm2.ImportEncapsulationKey(&pub)
	if err != nil {
		return nil, nil, err
	}
	// AES in CFB mode, which TPM2_ActivateCredential expects and Go's FIPS module
	// does not have (TPM 2.0 Library, part 1, section 24).
	fips140.WithoutEnforcement(func() {
		credential, seed, err = tpm2.CreateCredential(rand.Reader, key, name, secret)
	})
	return credential, seed, err
}
