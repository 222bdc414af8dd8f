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
	kindMoved  = 'v' // before an engine key: it was written while the instance is copied
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
	records *subkeys
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
	if z.records, err = newSubkeys(rk); err != nil {
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

// scratch is memory that seal and open use again. The zero value is ready; it
// is for one goroutine, and what seal returned is gone with the next use.
type scratch struct {
	key, sealed []byte
	room        [224]byte // for most keys and associated data
}

func (z *sealer) aad(sc *scratch, ek []byte) []byte {
	return append(append(sc.room[:0:128], z.prefix...), ek...)
}

// engineKey makes a record's engine key of a space and a key.
func (sc *scratch) engineKey(space, key []byte) []byte {
	if sc.key == nil {
		sc.key = sc.room[128:128]
	}
	sc.key = append(append(sc.key[:0], space...), key...)
	return sc.key
}

// maxScratch is the size of a sealed value that scratch keeps.
const maxScratch = 64 << 10

// seal returns suite, nonce and the sealed version and value.
func (z *sealer) seal(sc *scratch, ek []byte, version uint64, value []byte) []byte {
	n := sealedOver + len(value)
	buf := sc.sealed
	if cap(buf) < n {
		if buf = make([]byte, n); n <= maxScratch {
			sc.sealed = buf
		}
	}
	buf = buf[:n]
	buf[0] = suiteXAES
	plain := buf[1+xaes.NonceSize : n-xaes.Overhead]
	binary.BigEndian.PutUint64(plain, version)
	copy(plain[8:], value)
	z.records.seal(buf[1:1+xaes.NonceSize], plain, z.aad(sc, ek))
	return buf
}

// open is the inverse of seal; it overwrites sealed.
func (z *sealer) open(sc *scratch, ek, sealed []byte) (version uint64, value []byte, err error) {
	if len(sealed) < sealedOver || sealed[0] != suiteXAES {
		return 0, nil, fmt.Errorf("%w: record of %d bytes has no known form", ErrTampered, len(sealed))
	}
	plain, err := z.records.open(sealed[1:1+xaes.NonceSize], sealed[1+xaes.NonceSize:], z.aad(sc, ek))
	if err != nil {
		return 0, nil, fmt.Errorf("%w: record does not authenticate", ErrTampered)
	}
	return binary.BigEndian.Uint64(plain), plain[8:], nil
}
