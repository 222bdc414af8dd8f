package keys

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/trusttree/trusttree/tenantstore"
)

// TransitConfig describes a transit secrets engine of OpenBao or Vault.
// Address and Token are required.
type TransitConfig struct {
	// Address is the server's, with https.
	Address string
	// Mount is where the engine is mounted; empty means "transit".
	Mount string
	// Namespace, if set, is sent as X-Vault-Namespace.
	Namespace string
	// Prefix is put before the key names; empty means "tenantstore-".
	Prefix string
	// Token returns a token that may create, configure, delete, encrypt with and
	// decrypt with the keys of that prefix.
	Token func(context.Context) (string, error)
	// Client is http.DefaultClient's behaviour with a timeout when nil; set it
	// for the server's root or a client certificate.
	Client *http.Client
	// InsecureHTTP allows an address without TLS, for a sidecar on the loopback.
	InsecureHTTP bool
}

// Transit is a tenantstore.KeyProvider whose keys never leave an OpenBao or
// Vault server. It speaks plain HTTP and binds each wrapped key to its context
// as associated data. It is safe for concurrent use.
type Transit struct {
	cfg  TransitConfig
	base *url.URL
}

const (
	transitTimeout  = 10 * time.Second
	transitResponse = 1 << 20
)

// NewTransit checks the configuration; it does not connect.
func NewTransit(cfg TransitConfig) (*Transit, error) {
	u, err := url.Parse(cfg.Address)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && (u.Scheme != "http" || !cfg.InsecureHTTP) {
		return nil, fmt.Errorf("keys: transit: %w: address must be an https URL", tenantstore.ErrInvalid)
	}
	if cfg.Token == nil {
		return nil, fmt.Errorf("keys: transit: %w: no token", tenantstore.ErrInvalid)
	}
	if cfg.Mount == "" {
		cfg.Mount = "transit"
	}
	if cfg.Prefix == "" {
		cfg.Prefix = "tenantstore-"
	}
	if cfg.Client == nil {
		cfg.Client = &http.Client{Timeout: transitTimeout}
	}
	c := *cfg.Client // a redirect would carry the token elsewhere
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return errors.New("redirect refused") }
	cfg.Client = &c
	return &Transit{cfg: cfg, base: u.JoinPath("v1", cfg.Mount)}, nil
}

// call posts to an endpoint of the engine and decodes data.
func (t *Transit) call(ctx context.Context, method, op, keyID, rest string, in, out any) error {
	if err := t.try(ctx, method, op, keyID, rest, in, out); err != nil {
		return fmt.Errorf("keys: transit: %s %s: %w", op, keyID, err)
	}
	return nil
}

func (t *Transit) try(ctx context.Context, method, op, keyID, rest string, in, out any) error {
	if !validKeyID(keyID) {
		return tenantstore.ErrInvalid
	}
	token, err := t.cfg.Token(ctx)
	if err != nil {
		return fmt.Errorf("%w: token: %w", tenantstore.ErrKeyUnavailable, err)
	}
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	defer clear(body)
	req, err := http.NewRequestWithContext(ctx, method, t.base.JoinPath(op, t.cfg.Prefix+keyID, rest).String(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("X-Vault-Token", token)
	req.Header.Set("Content-Type", "application/json")
	if t.cfg.Namespace != "" {
		req.Header.Set("X-Vault-Namespace", t.cfg.Namespace)
	}
	rsp, err := t.cfg.Client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%w: %w", tenantstore.ErrKeyUnavailable, err)
	}
	defer rsp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(rsp.Body, transitResponse))
	if err != nil {
		return fmt.Errorf("%w: %w", tenantstore.ErrKeyUnavailable, err)
	}
	defer clear(b)
	if rsp.StatusCode/100 != 2 {
		return transitError(rsp.StatusCode, b)
	}
	if out == nil {
		return nil
	}
	answer := struct {
		Data any `json:"data"`
	}{out}
	if err := json.Unmarshal(b, &answer); err != nil { // not strict: servers add fields
		return fmt.Errorf("%w: malformed answer", tenantstore.ErrKeyUnavailable)
	}
	return nil
}

func transitError(status int, body []byte) error {
	var e struct {
		Errors []string `json:"errors"`
	}
	_ = json.Unmarshal(body, &e) // an answer of something else has no reasons
	text := strings.Join(e.Errors, "; ")
	if len(text) > 200 {
		text = text[:200]
	}
	has := func(s string) bool {
		return slices.ContainsFunc(e.Errors, func(x string) bool { return strings.Contains(x, s) })
	}
	switch {
	case status == http.StatusBadRequest && (has("encryption key not found") || has("no existing key named")):
		return fmt.Errorf("%w: %s", tenantstore.ErrKeyDestroyed, text)
	case status == http.StatusBadRequest && (has("message authentication failed") || has("invalid ciphertext")):
		return fmt.Errorf("%w: %s", tenantstore.ErrTampered, text)
	}
	return fmt.Errorf("%w: status %d: %s", tenantstore.ErrKeyUnavailable, status, text)
}

// Create implements tenantstore.KeyProvider. The key is not exportable.
func (t *Transit) Create(ctx context.Context, keyID string) error {
	return t.call(ctx, http.MethodPost, "keys", keyID, "", map[string]any{"type": "aes256-gcm96", "exportable": false, "allow_plaintext_backup": false}, nil)
}

// Wrap implements tenantstore.KeyProvider.
func (t *Transit) Wrap(ctx context.Context, keyID string, key []byte, kc tenantstore.KeyContext) ([]byte, error) {
	var out struct {
		Ciphertext string `json:"ciphertext"`
	}
	err := t.call(ctx, http.MethodPost, "encrypt", keyID, "", map[string]any{"plaintext": key, "associated_data": contextAAD(keyID, kc)}, &out)
	if err == nil && out.Ciphertext == "" {
		err = fmt.Errorf("keys: transit: encrypt %s: %w: empty answer", keyID, tenantstore.ErrKeyUnavailable)
	}
	return []byte(out.Ciphertext), err
}

// Unwrap implements tenantstore.KeyProvider.
func (t *Transit) Unwrap(ctx context.Context, keyID string, wrapped []byte, kc tenantstore.KeyContext) ([]byte, error) {
	if len(wrapped) == 0 || len(wrapped) > maxFile {
		return nil, fmt.Errorf("keys: transit: decrypt %s: %w: %d bytes", keyID, tenantstore.ErrTampered, len(wrapped))
	}
	var out struct {
		Plaintext []byte `json:"plaintext"`
	}
	err := t.call(ctx, http.MethodPost, "decrypt", keyID, "", map[string]any{"ciphertext": string(wrapped), "associated_data": contextAAD(keyID, kc)}, &out)
	return out.Plaintext, err
}

// Destroy implements tenantstore.KeyProvider.
func (t *Transit) Destroy(ctx context.Context, keyID string) error {
	err := t.call(ctx, http.MethodPost, "keys", keyID, "config", map[string]any{"deletion_allowed": true}, nil)
	if err == nil {
		err = t.call(ctx, http.MethodDelete, "keys", keyID, "", struct{}{}, nil)
	}
	if errors.Is(err, tenantstore.ErrKeyDestroyed) {
		return nil
	}
	return err
}
