package keys

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"filippo.io/age"

	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/internal/strict"
)

const maxAge = 64 << 10

// Age is a tenantstore.KeyProvider for tenants who bring and hold their own
// key. A tenant's key is wrapped twice: by an inner provider, whose key the
// store can destroy, and around that to the tenant's age recipients (X25519,
// hybrid post-quantum, a plugin's), whose identity the tenant can withhold. It
// takes both to open the tenant. It is safe for concurrent use.
type Age struct {
	inner      tenantstore.KeyProvider
	recipients []age.Recipient
	identities func(context.Context) ([]age.Identity, error)
}

// ageKey is what is encrypted to the recipients; age itself binds to nothing,
// so the context is inside and compared. Version 1.
type ageKey struct {
	Version int                    `json:"version"`
	KeyID   string                 `json:"key_id"`
	Context tenantstore.KeyContext `json:"context"`
	Inner   []byte                 `json:"inner"`
}

// NewAge returns the provider of one tenant, or of tenants that share
// recipients. identities is asked each time a key is unwrapped; its error
// means ErrKeyUnavailable.
func NewAge(inner tenantstore.KeyProvider, identities func(context.Context) ([]age.Identity, error), to ...age.Recipient) (*Age, error) {
	if inner == nil || identities == nil || len(to) == 0 {
		return nil, fmt.Errorf("keys: age: %w: needs an inner provider, identities and a recipient", tenantstore.ErrInvalid)
	}
	return &Age{inner: inner, recipients: to, identities: identities}, nil
}

// Create implements tenantstore.KeyProvider.
func (a *Age) Create(ctx context.Context, keyID string) error { return a.inner.Create(ctx, keyID) }

// Destroy implements tenantstore.KeyProvider.
func (a *Age) Destroy(ctx context.Context, keyID string) error { return a.inner.Destroy(ctx, keyID) }

// Wrap implements tenantstore.KeyProvider.
func (a *Age) Wrap(ctx context.Context, keyID string, key []byte, kc tenantstore.KeyContext) ([]byte, error) {
	inner, err := a.inner.Wrap(ctx, keyID, key, kc)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(ageKey{1, keyID, kc, inner})
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, a.recipients...)
	if err == nil {
		_, err = w.Write(text)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("keys: age: wrap with %s: %w", keyID, err)
	}
	return out.Bytes(), nil
}

// Unwrap implements tenantstore.KeyProvider.
func (a *Age) Unwrap(ctx context.Context, keyID string, wrapped []byte, kc tenantstore.KeyContext) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ids, err := a.identities(ctx)
	if err == nil && len(ids) == 0 {
		err = errors.New("the tenant gives no identity")
	}
	if err != nil {
		return nil, fmt.Errorf("keys: age: %w: %w", tenantstore.ErrKeyUnavailable, err)
	}
	r, err := age.Decrypt(bytes.NewReader(wrapped), ids...)
	if err != nil {
		var none *age.NoIdentityMatchError
		class := tenantstore.ErrTampered
		if errors.As(err, &none) {
			class = tenantstore.ErrKeyUnavailable
		}
		return nil, fmt.Errorf("keys: age: unwrap with %s: %w: %w", keyID, class, err)
	}
	text, err := io.ReadAll(io.LimitReader(r, maxAge))
	if err != nil {
		return nil, fmt.Errorf("keys: age: unwrap with %s: %w: %w", keyID, tenantstore.ErrTampered, err)
	}
	var k ageKey
	if err := strict.Decode(text, &k); err != nil {
		return nil, fmt.Errorf("keys: age: unwrap with %s: %w: %w", keyID, tenantstore.ErrTampered, err)
	}
	if k.Version != 1 || k.KeyID != keyID || k.Context != kc {
		return nil, fmt.Errorf("keys: age: unwrap with %s: %w: wrapped for another context", keyID, tenantstore.ErrTampered)
	}
	return a.inner.Unwrap(ctx, keyID, k.Inner, kc)
}
