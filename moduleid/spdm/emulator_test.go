package spdm_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
	"github.com/trusttree/trusttree/moduleid/spdm"
)

func emulator(t *testing.T, r *spdm.Responder, b spdm.Binding) (address string, done <-chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	end := make(chan error, 1)
	go func() { end <- r.ServeEmulator(t.Context(), l, b) }()
	return l.Addr().String(), end
}

func TestEmulatorSocketCarriesAProof(t *testing.T) {
	for b, name := range []string{"none", "MCTP", "PCI DOE", "TCP"} {
		for _, v := range []spdm.Version{spdm.Version12, spdm.Version13} {
			t.Run(name+" "+v.String(), func(t *testing.T) {
				address, _ := emulator(t, responder(t, elliptic.P384(), v), spdm.Binding(b))
				scheme := spdm.Scheme{Measurements: true}
				for range 2 { // the emulator serves the next requester after the farewell
					tr, err := spdm.DialEmulatorWith(t.Context(), address, spdm.Binding(b))
					require.NoError(t, err)
					chip, err := spdm.NewRequester(tr, spdm.Config{Scheme: scheme})
					require.NoError(t, err)
					c := moduleid.NewChallenge("node", "bay")
					e, err := chip.Prove(t.Context(), c)
					require.NoError(t, err)
					_, err = scheme.Check(c, e)
					require.NoError(t, err)
					require.NoError(t, chip.Close())
				}
			})
		}
	}
}

// What goes over the wire, byte by byte, against a peer written from the
// protocol's description alone.
func TestEmulatorSocketFraming(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	heard := make(chan string, 8)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		for {
			var h [12]byte
			if _, err := io.ReadFull(conn, h[:]); err != nil {
				close(heard)
				return
			}
			body := make([]byte, binary.BigEndian.Uint32(h[8:]))
			if _, err := io.ReadFull(conn, body); err != nil {
				return
			}
			heard <- fmt.Sprintf("%x %q", h, body)
			answer := map[uint32]string{0xdead: "Server Hello!\x00", 1: "\x05\x10\x04\x00\x00\x00\x01\x00\x20"}[binary.BigEndian.Uint32(h[:])]
			out := append(h[:8:8], 0, 0, 0, byte(len(answer)))
			_, _ = conn.Write(append(out, answer...))
		}
	}()
	tr, err := spdm.DialEmulator(t.Context(), l.Addr().String())
	require.NoError(t, err)
	chip, err := spdm.NewRequester(tr, spdm.Config{})
	require.NoError(t, err)
	_, err = chip.Prove(t.Context(), moduleid.NewChallenge("node", "bay"))
	require.ErrorContains(t, err, "no version")
	require.NoError(t, chip.Close())
	var got []string
	for s := range heard {
		got = append(got, s)
	}
	assert.Equal(t, []string{
		`0000dead000000010000000e "Client Hello!\x00"`,
		`000000010000000100000005 "\x05\x10\x84\x00\x00"`,
		`0000fffd0000000100000000 ""`,
	}, got)
}

func TestEmulatorWithAnotherBindingIsNamed(t *testing.T) {
	address, _ := emulator(t, responder(t, elliptic.P256()), spdm.BindingPCIDOE)
	_, err := spdm.DialEmulator(t.Context(), address)
	require.ErrorContains(t, err, "--trans")
	_, err = spdm.DialEmulatorWith(t.Context(), address, 4)
	require.ErrorContains(t, err, "no binding")
}

func TestEmulatorIsToldToShutDown(t *testing.T) {
	address, done := emulator(t, responder(t, elliptic.P256()), spdm.BindingMCTP)
	conn, err := net.Dial("tcp", address)
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte{0, 0, 0xff, 0xfe, 0, 0, 0, 1, 0, 0, 0, 0})
	require.NoError(t, err)
	require.NoError(t, <-done)
}

// option is one way to set a responder up.
type option struct {
	name   string
	change func(*spdm.ResponderConfig)
}

// options are what the reference emulator can be told by its flags, and what
// other responders choose.
func options(t *testing.T, ca *moduleidtest.CA) []option {
	key := func(k crypto.Signer) func(*spdm.ResponderConfig) {
		return func(c *spdm.ResponderConfig) {
			cert, err := ca.Issue("radio", k.Public(), nil)
			require.NoError(t, err)
			c.Key, c.Chain = k, []*x509.Certificate{cert, ca.Certificate}
		}
	}
	list := []option{
		{"as it comes", func(*spdm.ResponderConfig) {}},
		{"SHA-384", func(c *spdm.ResponderConfig) { c.Hash = crypto.SHA384 }},
		{"SHA-512", func(c *spdm.ResponderConfig) { c.Hash = crypto.SHA512 }},
		{"portions of 20 bytes", func(c *spdm.ResponderConfig) { c.MaxPortion = 20 }},
		{"transfers of 42 bytes", func(c *spdm.ResponderConfig) { c.TransferSize = 42 }},
		{"transfers of 43 bytes, certificates whole", func(c *spdm.ResponderConfig) { c.TransferSize, c.MaxPortion = 43, 60000 }},
		{"a record larger than a transfer", func(c *spdm.ResponderConfig) {
			for i := range 20 {
				c.Measurements = append(c.Measurements, moduleid.Measurement{Index: i + 2, Kind: "manifest", Value: make([]byte, 1024)})
			}
		}},
		{"opaque data", func(c *spdm.ResponderConfig) { c.Opaque = []byte("what a vendor likes to say") }},
		{"multi-key", func(c *spdm.ResponderConfig) { c.MultiKey = true }},
		{"more slots", func(c *spdm.ResponderConfig) {
			c.Slots = map[int]spdm.Slot{1: {c.Key, c.Chain}, 3: {c.Key, c.Chain}, 7: {c.Key, c.Chain}}
		}},
	}
	for _, curve := range []elliptic.Curve{elliptic.P384(), elliptic.P521()} {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		require.NoError(t, err)
		list = append(list, option{curve.Params().Name, key(k)})
	}
	for _, bits := range []int{2048, 3072, 4096}[:testenv.N(2, 3)] { // the largest takes long to make
		k := rsaKey(t, bits)
		list = append(list, option{fmt.Sprintf("RSAPSS-%d", bits), key(k)},
			option{fmt.Sprintf("RSASSA-%d", bits), func(c *spdm.ResponderConfig) { key(k)(c); c.PKCS1v15 = true }},
			option{fmt.Sprintf("RSAPSS-%d SHA-512 in transfers of 100 bytes", bits), func(c *spdm.ResponderConfig) { key(k)(c); c.Hash, c.TransferSize = crypto.SHA512, 100 }})
	}
	return list
}

func rsaKey(t *testing.T, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	require.NoError(t, err)
	return k
}

// Every way to set a responder up, in every version and every binding.
func TestResponderOptions(t *testing.T) {
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	base, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	cert, err := ca.Issue("radio", base.Public(), nil)
	require.NoError(t, err)
	for _, o := range options(t, ca) {
		t.Run(o.name, func(t *testing.T) {
			for v := spdm.Version10; v <= spdm.Version14; v++ {
				cfg := spdm.ResponderConfig{Key: base, Chain: []*x509.Certificate{cert, ca.Certificate}, Versions: []spdm.Version{v},
					Measurements: []moduleid.Measurement{{Index: 1, Kind: "firmware", Value: []byte("v1")}}}
				o.change(&cfg)
				if v < spdm.Version12 && (cfg.TransferSize != 0 || len(cfg.Measurements) > 1) {
					continue // there are no chunks yet
				}
				r, err := spdm.NewResponder(cfg)
				require.NoError(t, err)
				slots := []int{0}
				for n := range cfg.Slots {
					slots = append(slots, n)
				}
				for _, slot := range slots {
					if v == spdm.Version10 && slot > 0 {
						continue // measurements are slot 0's
					}
					proves(t, spdm.Loopback(r), v, slot, len(cfg.Measurements))
				}
				address, _ := emulator(t, r, spdm.BindingPCIDOE)
				tr, err := spdm.DialEmulatorWith(t.Context(), address, spdm.BindingPCIDOE)
				require.NoError(t, err)
				proves(t, tr, v, 0, len(cfg.Measurements))
			}
		})
	}
}

func proves(t *testing.T, tr spdm.Transport, v spdm.Version, slot, measurements int) {
	t.Helper()
	scheme := spdm.Scheme{MinVersion: v, Measurements: true}
	chip, err := spdm.NewRequester(tr, spdm.Config{Scheme: scheme, Slot: slot})
	require.NoError(t, err)
	c := moduleid.NewChallenge("node", "bay")
	e, err := chip.Prove(t.Context(), c)
	require.NoError(t, err, "version %s, slot %d", v, slot)
	p, err := scheme.Check(c, e)
	require.NoError(t, err)
	assert.Len(t, p.Measurements, measurements)
	require.NoError(t, chip.Close())
}

func TestMeasurementsWithoutASignature(t *testing.T) {
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	cert, err := ca.Issue("radio", key.Public(), nil)
	require.NoError(t, err)
	r, err := spdm.NewResponder(spdm.ResponderConfig{Key: key, Chain: []*x509.Certificate{cert, ca.Certificate}, UnsignedMeasurements: true,
		Measurements: []moduleid.Measurement{{Index: 1, Kind: "firmware", Value: []byte("v1")}}})
	require.NoError(t, err)
	require.NoError(t, attack(t, r, &mitm{}, spdm.Scheme{}))
	require.ErrorContains(t, attack(t, r, &mitm{}, spdm.Scheme{Measurements: true}), "signs no measurements")
}

func TestAliasCapabilityNeedsADevice(t *testing.T) {
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	cert, err := ca.Issue("radio", key.Public(), nil)
	require.NoError(t, err)
	r, err := spdm.NewResponder(spdm.ResponderConfig{Key: key, Chain: []*x509.Certificate{cert, ca.Certificate}, AliasCertificates: true})
	require.NoError(t, err)
	require.ErrorContains(t, attack(t, r, &mitm{}, spdm.Scheme{}), "nothing names the device")

	d := newDICE(t, ca)
	r, err = spdm.NewResponder(spdm.ResponderConfig{Key: d.key, Chain: d.chain, AliasCertificates: true})
	require.NoError(t, err)
	require.NoError(t, attack(t, r, &mitm{}, spdm.Scheme{}))
}

// A responder, or who sits before it, that lies about chunks.
func TestThreat07ChunksThatDoNotFit(t *testing.T) {
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	cert, err := ca.Issue("radio", key.Public(), nil)
	require.NoError(t, err)
	for _, v := range []spdm.Version{spdm.Version12, spdm.Version14} {
		r, err := spdm.NewResponder(spdm.ResponderConfig{Key: key, Chain: []*x509.Certificate{cert, ca.Certificate}, TransferSize: 60, Versions: []spdm.Version{v}})
		require.NoError(t, err)
		le := binary.LittleEndian
		first := true
		for name, change := range map[string]func(p []byte) []byte{
			"another message's handle": func(p []byte) []byte { p[3]++; return p },
			"a number twice":           func(p []byte) []byte { p[4] = 0; return p },
			"more than it has":         func(p []byte) []byte { le.PutUint32(p[8:], 0xffffffff); return p },
			"an early end":             func(p []byte) []byte { p[2] |= 1; return p },
			"no end":                   func(p []byte) []byte { p[2] &^= 1; return p },
			"cut off":                  func(p []byte) []byte { return p[:len(p)-1] },
			"bytes behind":             func(p []byte) []byte { return append(p, 1) },
			"nothing":                  func(p []byte) []byte { le.PutUint32(p[8:], 0); return p[:12] },
			"endless": func(p []byte) []byte {
				if first {
					le.PutUint32(p[12:], 0x7fffffff)
				}
				return p
			},
			"one byte at a time": func(p []byte) []byte {
				le.PutUint32(p[8:], 1)
				p[2] &^= 1
				if first {
					return p[:17]
				}
				return p[:13]
			},
			"another bit": func(p []byte) []byte { p[len(p)-1] ^= 1; return p },
		} {
			t.Run(v.String()+" "+name, func(t *testing.T) {
				n := 0
				m := &mitm{answer: func(req, rsp []byte) []byte {
					if req[1] != 0x86 || rsp[1] != 6 {
						return rsp
					}
					first = binary.LittleEndian.Uint16(req[4:]) == 0
					// The last chunk is the one without an end.
					if n++; name == "no end" && rsp[2]&1 == 0 || name == "a number twice" && first {
						return rsp
					}
					return change(rsp)
				}}
				err := attack(t, r, m, spdm.Scheme{})
				require.ErrorIs(t, err, moduleid.ErrRefused)
				assert.Positive(t, n)
				assert.Less(t, m.count, 200)
			})
		}
		t.Run(v.String()+" acknowledged as another chunk", func(t *testing.T) {
			small, err := spdm.NewResponder(spdm.ResponderConfig{Key: key, Chain: []*x509.Certificate{cert, ca.Certificate}, TransferSize: 42,
				Measurements: []moduleid.Measurement{{Index: 1, Kind: "firmware", Value: []byte("v1")}}, Versions: []spdm.Version{v, spdm.Version13}})
			require.NoError(t, err)
			m := &mitm{answer: func(req, rsp []byte) []byte {
				if rsp[1] == 5 {
					rsp[4] ^= 1
				}
				return rsp
			}}
			require.ErrorContains(t, attack(t, small, m, spdm.Scheme{}), "acknowledged as")
		})
	}
}

func TestResponderWithoutChunksAndTooSmallForTheRequest(t *testing.T) {
	r := responder(t, elliptic.P256(), spdm.Version13)
	m := &mitm{answer: func(req, rsp []byte) []byte {
		if req[1] == 0xe1 {
			rsp[10] &^= 2 // no chunks
			binary.LittleEndian.PutUint32(rsp[12:], 42)
		}
		return rsp
	}}
	require.ErrorContains(t, attack(t, r, m, spdm.Scheme{}), "no chunks")
	m.answer = func(req, rsp []byte) []byte {
		if req[1] == 0xe1 {
			binary.LittleEndian.PutUint32(rsp[12:], 41)
		}
		return rsp
	}
	require.ErrorContains(t, attack(t, r, m, spdm.Scheme{}), "the least is 42")
}

func TestKeyThatIsNotForChallengesIsRefused(t *testing.T) {
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	cert, err := ca.Issue("radio", key.Public(), nil)
	require.NoError(t, err)
	slot := spdm.Slot{Key: key, Chain: []*x509.Certificate{cert, ca.Certificate}}
	r, err := spdm.NewResponder(spdm.ResponderConfig{Key: key, Chain: slot.Chain, MultiKey: true, Slots: map[int]spdm.Slot{2: slot}})
	require.NoError(t, err)
	m := &mitm{answer: func(req, rsp []byte) []byte {
		if req[1] == 0x81 {
			rsp[len(rsp)-4] = 1 // slot 0: key exchange only
		}
		return rsp
	}}
	require.ErrorContains(t, attack(t, r, m, spdm.Scheme{}), "not for challenges")
}

// Answers of a vendor's own kind, and errors that only vendors know.
func TestVendorAnswersAreNoProof(t *testing.T) {
	for name, answer := range map[string][]byte{
		"vendor response": {0x13, 0x7e, 0, 0, 3, 0, 2, 0x86, 0x80, 1, 0, 9},
		"vendor error":    {0x13, 0x7f, 0xff, 0, 3, 2, 0x86, 0x80},
	} {
		t.Run(name, func(t *testing.T) {
			m := &mitm{asked: func(req []byte) []byte {
				if req[1] == 0x83 {
					return answer
				}
				return req
			}}
			err := attack(t, responder(t, elliptic.P256()), m, spdm.Scheme{})
			require.Error(t, err)
			assert.True(t, strings.Contains(err.Error(), "VendorDefined") || strings.Contains(err.Error(), "out of order"), err)
		})
	}
}

func TestResponderIsSetUpWrongly(t *testing.T) {
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	a, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	b, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	chain := func(k *ecdsa.PrivateKey) []*x509.Certificate {
		cert, err := ca.Issue("radio", k.Public(), nil)
		require.NoError(t, err)
		return []*x509.Certificate{cert, ca.Certificate}
	}
	for name, change := range map[string]func(*spdm.ResponderConfig){
		"no key":             func(c *spdm.ResponderConfig) { c.Key = nil },
		"no chain":           func(c *spdm.ResponderConfig) { c.Chain = nil },
		"another key":        func(c *spdm.ResponderConfig) { c.Key = b },
		"slot 0 twice":       func(c *spdm.ResponderConfig) { c.Slots = map[int]spdm.Slot{0: {a, c.Chain}} },
		"slot 8":             func(c *spdm.ResponderConfig) { c.Slots = map[int]spdm.Slot{8: {a, c.Chain}} },
		"two algorithms":     func(c *spdm.ResponderConfig) { c.Slots = map[int]spdm.Slot{1: {b, chain(b)}} },
		"small transfers":    func(c *spdm.ResponderConfig) { c.TransferSize = 41 },
		"much opaque data":   func(c *spdm.ResponderConfig) { c.Opaque = make([]byte, 1025) },
		"another hash":       func(c *spdm.ResponderConfig) { c.Hash = crypto.SHA1 },
		"PKCS #1 with ECDSA": func(c *spdm.ResponderConfig) { c.PKCS1v15 = true },
		"measurement 0":      func(c *spdm.ResponderConfig) { c.Measurements = []moduleid.Measurement{{}} },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := spdm.ResponderConfig{Key: a, Chain: chain(a)}
			change(&cfg)
			_, err := spdm.NewResponder(cfg)
			require.Error(t, err)
		})
	}
}
