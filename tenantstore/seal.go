package tenantstore

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"sync"

	"github.com/trusttree/trusttree/tenantstore/engine"
	"github.com/trusttree/trusttree/tenantstore/internal/xaes"
)

// secret is a tenant's key material. It never prints.
type secret []byte

// secretSize is that of the data key, which each generation has anew, and of
// the lasting key behind it, from which names and audit keys come.
const secretSize = 64

func newSecret(lasting []byte) secret {
	s := make(secret, secretSize)
	_, _ = rand.Read(s)
	if lasting != nil {
		copy(s[32:], lasting)
	}
	return s
}

func (s secret) data() []byte    { return s[:32] }
func (s secret) lasting() []byte { return s[32:] }
func (s secret) zero()           { clear(s) }

// Format implements fmt.Formatter.
func (secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[redacted]")) }

// LogValue implements slog.LogValuer.
func (secret) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// MarshalText implements encoding.TextMarshaler.
func (secret) MarshalText() ([]byte, error) { return []byte("[redacted]"), nil }

// subkey derives the key of one purpose (HKDF-SHA256, RFC 5869), bound to the
// store, the tenant and, for data keys, the generation.
func subkey(key []byte, purpose string, store UID, ref engine.Ref) ([]byte, error) {
	return hkdf.Key(sha256.New, key, store[:], "trusttree tenantstore v1 "+purpose+" "+ref.String(), 32)
}

// Kinds of engine keys: their first byte.
const (
	kindRecord = 'r'
	kindSeries = 's'
	kindOnce   = 'o' // marks of ingested messages
	kindOnceAt = 'p' // the same by time, for pruning
	kindMeta   = 'm'
)

const (
	suiteXAES  = 1
	sealedOver = 1 + xaes.NonceSize + 8 + xaes.Overhead // bytes added to a value
	spaceSize  = 1 + 16
)

// sealer seals the records of one generation of one tenant. An engine key is
// kind, 16 bytes of HMAC-SHA256 over the collection's name under the tenant's
// naming key, and the record's key. The engine key is in the associated data,
// so a record opens only in its store, tenant, generation, collection and key.
type sealer struct {
	records cipher.AEAD
	audit   cipher.AEAD
	names   []byte
	prefix  []byte // of the associated data

	mu     sync.Mutex
	spaces map[string][]byte // of collections in use; at most maxSpaces
}

const maxSpaces = 256

func newSealer(s secret, store UID, ref engine.Ref) (*sealer, error) {
	lasting := engine.Ref{UID: ref.UID} // names and audit outlive generations, and names the store: backups keep them
	rk, err := subkey(s.data(), "records", store, ref)
	if err != nil {
		return nil, err
	}
	defer clear(rk)
	ak, err := subkey(s.lasting(), "audit", store, lasting)
	if err != nil {
		return nil, err
	}
	defer clear(ak)
	z := &sealer{prefix: []byte("trusttree tenantstore record v1")}
	if z.names, err = subkey(s.lasting(), "names", UID{}, lasting); err != nil {
		return nil, err
	}
	if z.records, err = xaes.New(rk); err != nil {
		return nil, err
	}
	if z.audit, err = xaes.New(ak); err != nil {
		return nil, err
	}
	z.prefix = append(append(z.prefix, store[:]...), ref.UID[:]...)
	z.prefix = binary.BigEndian.AppendUint32(z.prefix, ref.Generation)
	return z, nil
}

// collection is space(kindRecord, name), remembered.
func (z *sealer) collection(name string) []byte {
	z.mu.Lock()
	defer z.mu.Unlock()
	sp, ok := z.spaces[name]
	if !ok {
		if len(z.spaces) >= maxSpaces || z.spaces == nil {
			z.spaces = map[string][]byte{}
		}
		sp = z.space(kindRecord, name)
		z.spaces[name] = sp
	}
	return sp
}

// space is the engine-key prefix of a collection, or of a series in one.
func (z *sealer) space(kind byte, names ...string) []byte {
	m := hmac.New(sha256.New, z.names)
	_, _ = m.Write([]byte{kind})
	for _, n := range names {
		var l [4]byte
		binary.BigEndian.PutUint32(l[:], uint32(len(n)))
		_, _ = m.Write(l[:])
		_, _ = m.Write([]byte(n))
	}
	return m.Sum([]byte{kind})[:spaceSize:spaceSize]
}

func (z *sealer) aad(ek []byte) []byte {
	return append(z.prefix[:len(z.prefix):len(z.prefix)], ek...)
}

// seal returns suite, nonce and the sealed version and value.
func (z *sealer) seal(ek []byte, version uint64, value []byte) []byte {
	buf := make([]byte, 1+xaes.NonceSize+8+len(value), sealedOver+len(value))
	buf[0] = suiteXAES
	nonce := buf[1 : 1+xaes.NonceSize]
	_, _ = rand.Read(nonce)
	plain := buf[1+xaes.NonceSize:]
	binary.BigEndian.PutUint64(plain, version)
	copy(plain[8:], value)
	z.records.Seal(plain[:0], nonce, plain, z.aad(ek))
	return buf[:cap(buf)]
}

// open is the inverse of seal; it overwrites sealed.
func (z *sealer) open(ek, sealed []byte) (version uint64, value []byte, err error) {
	if len(sealed) < sealedOver || sealed[0] != suiteXAES {
		return 0, nil, fmt.Errorf("%w: record of %d bytes has no known form", ErrTampered, len(sealed))
	}
	body := sealed[1+xaes.NonceSize:]
	plain, err := z.records.Open(body[:0], sealed[1:1+xaes.NonceSize], body, z.aad(ek))
	if err != nil {
		return 0, nil, fmt.Errorf("%w: record does not authenticate", ErrTampered)
	}
	return binary.BigEndian.Uint64(plain), plain[8:], nil
}
