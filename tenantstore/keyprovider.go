package tenantstore

import "context"

// KeyContext is what a wrapped key is bound to. Every provider authenticates
// it: a key wrapped for one context does not unwrap in another.
type KeyContext struct {
	Store      UID    `json:"store"`
	Tenant     UID    `json:"tenant"`
	Generation uint32 `json:"generation"`
}

// KeyProvider holds the key-encryption keys, one for each tenant, and wraps
// the tenants' data keys under them. The sub-package keys has providers: a
// directory whose master key is a file or sealed to a TPM, age recipients, and
// OpenBao or Vault. Implementations are safe for concurrent use, return
// ErrKeyUnavailable or ErrKeyDestroyed (wrapped) when it is that, and never
// fall back to another key.
type KeyProvider interface {
	// Create makes the key keyID, unless it is there already. The store chooses
	// names of 1 to 64 characters of a-z, 0-9 and '-', and never reuses one.
	Create(ctx context.Context, keyID string) error
	// Wrap encrypts a key of 64 bytes.
	Wrap(ctx context.Context, keyID string, key []byte, kc KeyContext) ([]byte, error)
	// Unwrap decrypts what Wrap returned, at most 64 KiB.
	Unwrap(ctx context.Context, keyID string, wrapped []byte, kc KeyContext) ([]byte, error)
	// Destroy makes keyID unusable for good. It is no error when it is gone.
	Destroy(ctx context.Context, keyID string) error
}
