package moduleidtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"sync"
	"time"
)

// Timing is how fast an emulated chip is.
type Timing float64

// Instant answers at once; DataSheet takes the data sheet's longest times.
const (
	Instant   Timing = 0
	DataSheet Timing = 1
)

// ATECC608 emulates one secure element at the wire: wake and watchdog, packets
// with checksums, execution times during which it acknowledges nothing, the
// zones and the rules of its slots. Safe for concurrent use.
type ATECC608 struct {
	mu       sync.Mutex
	timing   Timing
	revision [4]byte
	config   [128]byte
	slots    [16][]byte
	key      *ecdsa.PrivateKey // of slot 0
	internal *ecdsa.PrivateKey // of slot 1, which signs internal messages only

	state    power
	awakeAt  time.Time // when a wake is complete
	busyTill time.Time
	dogAt    time.Time // when the watchdog puts it to sleep
	out      []byte
	read     int
	temp     *tempKey
	digest   []byte // message digest buffer
}

type power int

const (
	asleep power = iota
	idle
	awake
)

// tempKey is the register TempKey with its flags.
type tempKey struct {
	value  [32]byte
	input  bool // loaded by the host
	genKey bool
	keyID  byte
}

// NewATECC608 returns a locked ATECC608B with fresh private keys in slots 0
// (signs digests) and 1 (signs internal messages only), and no certificate.
func NewATECC608(timing Timing) (*ATECC608, error) {
	c := &ATECC608{timing: timing}
	for _, k := range []**ecdsa.PrivateKey{&c.key, &c.internal} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		*k = key
	}
	var sn [6]byte
	rand.Read(sn[:])
	z := &c.config
	copy(z[0:], []byte{0x01, 0x23, sn[0], sn[1], 0, 0, 0x60, 0x03, sn[2], sn[3], sn[4], sn[5], 0xee, 1, 1, 0, 0xc0})
	set := func(slot int, slotConfig, keyConfig uint16) {
		binary.LittleEndian.PutUint16(z[20+2*slot:], slotConfig)
		binary.LittleEndian.PutUint16(z[96+2*slot:], keyConfig)
	}
	for slot := range 16 {
		set(slot, 0x0f0f, 0x003c) // public data
		c.slots[slot] = make([]byte, slotSize(slot))
	}
	set(0, 0x2085, 0x0033) // secret, ECDH, signs digests of the host
	set(1, 0x2082, 0x0033) // secret, signs internal messages only
	z[88], z[89] = 0xff, 0xff
	copy(c.revision[:], z[4:8])
	return c, nil
}

func slotSize(slot int) int {
	switch {
	case slot < 8:
		return 36
	case slot == 8:
		return 416
	}
	return 72
}

// PublicKey returns the key of slot 0.
func (c *ATECC608) PublicKey() *ecdsa.PublicKey { return &c.key.PublicKey }

// InternalKey returns the key of slot 1.
func (c *ATECC608) InternalKey() *ecdsa.PublicKey { return &c.internal.PublicKey }

// Store writes DER certificates, one after the other, into slot 8.
func (c *ATECC608) Store(chain ...*x509.Certificate) error {
	var data []byte
	for _, cert := range chain {
		data = append(data, cert.Raw...)
	}
	return c.StoreSlot(8, data)
}

// StoreSlot writes a data slot; the rest of it becomes zero.
func (c *ATECC608) StoreSlot(slot int, data []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(data) > len(c.slots[slot]) {
		return fmt.Errorf("moduleidtest: %d bytes do not fit the %d bytes of slot %d", len(data), len(c.slots[slot]), slot)
	}
	clear(c.slots[slot])
	copy(c.slots[slot], data)
	return nil
}

// Configure lets f change the configuration zone, as only a factory can.
func (c *ATECC608) Configure(f func(zone *[128]byte)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.config)
}

// CopyCertificates makes a clone as a thief can make one: everything that can
// be read from another chip, and a key of its own.
func (c *ATECC608) CopyCertificates(from *ATECC608) {
	from.mu.Lock()
	slots := from.slots
	for i := range slots {
		slots[i] = append([]byte(nil), slots[i]...)
	}
	zone := from.config
	from.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slots, c.config = slots, zone
}

// Clone returns a chip with the same keys: what only a laboratory can make.
func (c *ATECC608) Clone() *ATECC608 {
	d := &ATECC608{timing: c.timing, key: c.key, internal: c.internal, revision: c.revision}
	d.CopyCertificates(c)
	return d
}

func (c *ATECC608) duration(d time.Duration) time.Duration {
	return time.Duration(float64(d) * float64(c.timing))
}

const (
	wakeTime = 1500 * time.Microsecond
	watchdog = 1300 * time.Millisecond
)

// tick lets the watchdog act.
func (c *ATECC608) tick(now time.Time) {
	if c.state == awake && now.After(c.dogAt) {
		c.state, c.temp, c.digest, c.out = asleep, nil, nil, nil
	}
}

// wake is SDA held low.
func (c *ATECC608) wake(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tick(now)
	if c.state == awake {
		return
	}
	c.state = awake
	c.awakeAt = now.Add(c.duration(wakeTime))
	c.busyTill = c.awakeAt
	c.dogAt = now.Add(watchdog)
	c.out, c.read = respond(0x11), 0
}

// receive is a write to the chip's address; it reports the acknowledgement.
func (c *ATECC608) receive(p []byte, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tick(now)
	if c.state != awake || now.Before(c.busyTill) {
		return false
	}
	if len(p) == 0 {
		return true
	}
	switch p[0] {
	case 0:
		c.read = 0
	case 1:
		c.state, c.temp, c.digest, c.out = asleep, nil, nil, nil
	case 2:
		c.state, c.out = idle, nil
	case 3:
		answer, took := c.execute(p[1:])
		c.out, c.read = answer, 0
		c.busyTill = now.Add(c.duration(took))
	}
	return true
}

// send is a read from the chip's address.
func (c *ATECC608) send(p []byte, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tick(now)
	if c.state != awake || now.Before(c.busyTill) {
		return false
	}
	for i := range p {
		p[i] = 0xff
		if c.read < len(c.out) {
			p[i] = c.out[c.read]
			c.read++
		}
	}
	return true
}

func crc16(p []byte) uint16 {
	var r uint16
	for _, x := range p {
		for bit := range 8 {
			d := uint16(x>>bit) & 1
			c := r >> 15
			r <<= 1
			if d != c {
				r ^= 0x8005
			}
		}
	}
	return r
}

// respond frames an answer: count, data, checksum.
func respond(data ...byte) []byte {
	p := append([]byte{byte(len(data) + 3)}, data...)
	return binary.LittleEndian.AppendUint16(p, crc16(p))
}

// seal is SHA-256 of the concatenated parts.
func seal(parts ...[]byte) (sum [32]byte) {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return [32]byte(h.Sum(nil))
}
