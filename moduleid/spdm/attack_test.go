package spdm_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
	"github.com/trusttree/trusttree/moduleid/spdm"
)

// mitm sits between requester and responder.
type mitm struct {
	answer func(req, rsp []byte) []byte // changes an answer
	asked  func(req []byte) []byte      // changes a request, or answers it itself if the code is a response's
	count  int
}

func (m *mitm) exchange(x *moduleidtest.SPDMExchange) error {
	m.count++
	if m.asked != nil {
		req := m.asked(x.Request)
		if req[1] < 0x80 {
			x.Response = req
			return nil
		}
		x.Request = req
	}
	if m.answer != nil {
		x.Response = m.answer(x.Request, x.Answer())
	}
	return nil
}

func (m *mitm) connect(r *spdm.Responder) spdm.Transport {
	port := moduleidtest.NewSPDMPort(r)
	port.OnExchange(m.exchange)
	return port.Connect()
}

func attack(t *testing.T, r *spdm.Responder, m *mitm, scheme spdm.Scheme) error {
	t.Helper()
	chip, err := spdm.NewRequester(m.connect(r), spdm.Config{Scheme: scheme})
	require.NoError(t, err)
	_, err = chip.Prove(t.Context(), moduleid.NewChallenge("node", "bay"))
	return err
}

func TestThreat08Downgrades(t *testing.T) {
	le := binary.LittleEndian
	for name, tc := range map[string]struct {
		m    *mitm
		want string
	}{
		"higher versions removed": {&mitm{answer: func(req, rsp []byte) []byte {
			if req[1] == 0x84 {
				return []byte{0x10, 0x04, 0, 0, 0, 1, 0, 0x12}
			}
			return rsp
		}}, "does not match the transcript"},
		"measurement capability removed": {&mitm{answer: func(req, rsp []byte) []byte {
			if req[1] == 0xe1 {
				rsp[8] &^= 0x18
			}
			return rsp
		}}, "does not match the transcript"},
		"challenge capability removed": {&mitm{answer: func(req, rsp []byte) []byte {
			if req[1] == 0xe1 {
				rsp[8] &^= 4
			}
			return rsp
		}}, "answers no challenge"},
		"two algorithms selected": {&mitm{answer: func(req, rsp []byte) []byte {
			if req[1] == 0xe3 {
				le.PutUint32(rsp[12:], 0x90)
			}
			return rsp
		}}, "exactly one"},
		"algorithm that was not offered": {&mitm{answer: func(req, rsp []byte) []byte {
			if req[1] == 0xe3 {
				le.PutUint32(rsp[12:], 0x200) // SM2
			}
			return rsp
		}}, "not offered"},
		"hash that was not offered": {&mitm{answer: func(req, rsp []byte) []byte {
			if req[1] == 0xe3 {
				le.PutUint32(rsp[16:], 8)
			}
			return rsp
		}}, "not offered"},
		"offer thinned out on its way": {&mitm{asked: func(req []byte) []byte {
			if req[1] == 0xe3 {
				req = append([]byte(nil), req...)
				le.PutUint32(req[12:], 1)
			}
			return req
		}}, "does not match the transcript"},
		"no common version": {&mitm{answer: func(req, rsp []byte) []byte {
			return []byte{0x10, 0x04, 0, 0, 0, 1, 0, 0x20}
		}}, "no version"},
	} {
		t.Run(name, func(t *testing.T) {
			assert.ErrorContains(t, attack(t, responder(t, elliptic.P256()), tc.m, spdm.Scheme{}), tc.want)
		})
	}
	t.Run("an old responder", func(t *testing.T) {
		assert.ErrorContains(t, attack(t, responder(t, elliptic.P256(), spdm.Version11), &mitm{}, spdm.Scheme{}), "at least 1.2")
	})
	t.Run("no measurements where they are asked for", func(t *testing.T) {
		ca, err := moduleidtest.NewCA("Owner CA")
		require.NoError(t, err)
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		cert, err := ca.Issue("radio", key.Public(), nil)
		require.NoError(t, err)
		r, err := spdm.NewResponder(spdm.ResponderConfig{Key: key, Chain: []*x509.Certificate{cert, ca.Certificate}})
		require.NoError(t, err)
		assert.ErrorContains(t, attack(t, r, &mitm{}, spdm.Scheme{Measurements: true}), "signs no measurements")
		require.NoError(t, attack(t, r, &mitm{}, spdm.Scheme{}))
		chip, err := spdm.NewRequester(spdm.Loopback(r), spdm.Config{})
		require.NoError(t, err)
		c := moduleid.NewChallenge("node", "bay")
		e, err := chip.Prove(t.Context(), c)
		require.NoError(t, err)
		_, err = spdm.Scheme{Measurements: true}.Check(c, e)
		assert.ErrorContains(t, err, "no signed measurements", "a node that left them out does not get past the cloud")
	})
}

func TestThreat14EndlessPatienceIsNotGranted(t *testing.T) {
	busy := func(code byte, more ...byte) *mitm {
		return &mitm{asked: func(req []byte) []byte {
			if req[1] == 0x84 || req[1] == 0xe1 {
				return req
			}
			return append([]byte{0x13, 0x7f, code, 0}, more...)
		}}
	}
	for name, m := range map[string]*mitm{
		"busy for ever":           busy(0x03),
		"not ready for ever":      busy(0x42, 10, 0xe3, 1, 0),
		"not ready for years":     busy(0x42, 31, 0xe3, 1, 0),
		"start over for ever":     {asked: func(req []byte) []byte { return []byte{0x10, 0x7f, 0x43, 0} }},
		"unspecified":             busy(0x05),
		"large response":          busy(0x0f),
		"short error":             busy(0x42),
		"certificate drip of 1 B": {asked: drip()},
		"certificate of nothing": {answer: func(req, rsp []byte) []byte {
			if req[1] == 0x82 {
				rsp = append(rsp[:4:4], 0, 0, 9, 0)
			}
			return rsp
		}},
		"certificate grows": {answer: func(req, rsp []byte) []byte {
			if req[1] == 0x82 && req[4] != 0 {
				rsp[6]++
			}
			return rsp
		}},
		"digests of slots that are missing": {answer: func(req, rsp []byte) []byte {
			if req[1] == 0x81 {
				rsp[3] = 0xff
			}
			return rsp
		}},
		"digests without our slot": {answer: func(req, rsp []byte) []byte {
			if req[1] == 0x81 {
				rsp[3] = 2
			}
			return rsp
		}},
		"empty answers": {answer: func(_, rsp []byte) []byte { return nil }},
		"short answers": {answer: func(_, rsp []byte) []byte { return rsp[:len(rsp)-1] }},
		"long answers":  {answer: func(_, rsp []byte) []byte { return append(rsp, 0) }},
		"wrong version": {answer: func(_, rsp []byte) []byte { rsp[0] = 0x11; return rsp }},
	} {
		t.Run(name, func(t *testing.T) {
			require.Error(t, attack(t, responder(t, elliptic.P256()), m, spdm.Scheme{}))
			assert.Less(t, m.count, 700)
		})
	}
}

// drip announces a long chain and sends it byte by byte.
func drip() func([]byte) []byte {
	total := 60000
	return func(req []byte) []byte {
		if req[1] != 0x82 {
			return req
		}
		total--
		rsp := []byte{req[0], 0x02, req[2], 0, 1, 0}
		rsp = binary.LittleEndian.AppendUint16(rsp, uint16(total))
		return append(rsp, 0x30)
	}
}

func TestResponderThatIsSlowButHonest(t *testing.T) {
	waits := 0
	m := &mitm{asked: func(req []byte) []byte {
		switch req[1] {
		case 0x83:
			if waits++; waits < 3 {
				return []byte{req[0], 0x7f, 0x42, 0, 5, 0x83, 9, 1}
			}
		case 0xff:
			assert.Equal(t, []byte{0x83, 9}, req[2:4])
		case 0x81:
			if waits == 0 {
				waits++
				return []byte{req[0], 0x7f, 0x03, 0}
			}
		}
		return req
	}}
	require.NoError(t, attack(t, responder(t, elliptic.P256()), m, spdm.Scheme{}))
	assert.Equal(t, 2, waits)
}

func TestResponderThatRefusesPortionSizes(t *testing.T) {
	for name, accepts := range map[string]func(uint16) bool{
		"only everything":   func(n uint16) bool { return n == 0xffff },
		"only small pieces": func(n uint16) bool { return n <= 0x100 },
	} {
		t.Run(name, func(t *testing.T) {
			m := &mitm{asked: func(req []byte) []byte {
				if req[1] == 0x82 && !accepts(binary.LittleEndian.Uint16(req[6:])) {
					return []byte{req[0], 0x7f, 0x01, 0}
				}
				return req
			}}
			require.NoError(t, attack(t, responder(t, elliptic.P256()), m, spdm.Scheme{}))
		})
	}
}

func TestTransportsCarryAProof(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- responder(t, elliptic.P256()).ServeAll(ctx, l) }()
	tr, err := spdm.DialTCP(t.Context(), l.Addr().String())
	require.NoError(t, err)
	chip, err := spdm.NewRequester(tr, spdm.Config{Scheme: spdm.Scheme{Measurements: true}})
	require.NoError(t, err)
	for range 2 {
		_, err = chip.Prove(t.Context(), moduleid.NewChallenge("node", "bay"))
		require.NoError(t, err)
	}
	require.NoError(t, chip.Close())
	cancel()
	require.NoError(t, <-done)
}

func TestThreat14SilentPeerEndsWithTheContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	tr, err := spdm.DialTCP(t.Context(), l.Addr().String())
	require.NoError(t, err)
	defer tr.Close()
	chip, err := spdm.NewRequester(tr, spdm.Config{})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = chip.Prove(ctx, moduleid.NewChallenge("node", "bay"))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_, err = chip.Prove(t.Context(), moduleid.NewChallenge("node", "bay"))
	require.ErrorContains(t, err, "broke earlier", "a stream out of step is not used again")
}

// diceChain is a device certificate that issues an alias for each firmware.
type diceChain struct {
	key   *ecdsa.PrivateKey
	chain []*x509.Certificate // alias, device, CA
}

func newDICE(t *testing.T, ca *moduleidtest.CA, alias ...pkix.Extension) diceChain {
	t.Helper()
	device, err := ca.IssueCA("device 1")
	require.NoError(t, err)
	// The device certificate again, with the hardware identity.
	hw, err := asn1.Marshal([]any{[]any{asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 412, 274, 2}}})
	require.NoError(t, err)
	cert, err := ca.Issue("device 1", device.Certificate.PublicKey, func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign
		c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 412, 274, 6}, Critical: true, Value: hw}}
	})
	require.NoError(t, err)
	device.Certificate = cert
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	leaf, err := device.Issue("alias", key.Public(), func(c *x509.Certificate) { c.ExtraExtensions = alias })
	require.NoError(t, err)
	return diceChain{key, []*x509.Certificate{leaf, cert, ca.Certificate}}
}

func (d diceChain) verify(t *testing.T, ca *moduleidtest.CA, class moduleid.Class) (*moduleid.Identity, error) {
	t.Helper()
	r, err := spdm.NewResponder(spdm.ResponderConfig{Key: d.key, Chain: d.chain})
	require.NoError(t, err)
	chip, err := spdm.NewRequester(spdm.Loopback(r), spdm.Config{})
	require.NoError(t, err)
	c := moduleid.NewChallenge("node", "bay")
	e, err := chip.Prove(t.Context(), c)
	if err != nil {
		return nil, err
	}
	v := &moduleid.Verifier{Schemes: []moduleid.Scheme{spdm.Scheme{}}, Roots: ca.Pool(), UnsafeNoRevocations: true,
		Registry:   moduleid.Records{moduleid.ID(d.chain[1]): {Class: "radio"}},
		Classes:    map[string]moduleid.Class{"radio": class},
		Connectors: map[string]moduleid.Connector{"bay": {Classes: []string{"radio"}}}}
	return v.Verify(c, e)
}

// tcbInfo is a DiceTcbInfo with svn 5, layer 1, one firmware digest and flags.
func tcbInfo(t *testing.T, digest []byte, flags byte) pkix.Extension {
	t.Helper()
	fwid := append([]byte{0x30, 0x2d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x04, 0x20}, digest...)
	body := append([]byte{0x83, 1, 5, 0x84, 1, 1, 0xa6, byte(len(fwid))}, fwid...)
	body = append(body, 0x87, 2, 4, flags)
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1}, Critical: true, Value: append([]byte{0x30, byte(len(body))}, body...)}
}

func TestAliasChainNamesTheDevice(t *testing.T) {
	ca, err := moduleidtest.NewCA("Maker")
	require.NoError(t, err)
	digest := make([]byte, 32)
	rand.Read(digest)
	class := moduleid.Class{Measurements: map[int][][]byte{spdm.IndexFWID + 1: {digest}, spdm.IndexSVN + 1: {{0, 0, 0, 0, 0, 0, 0, 5}}}}
	d := newDICE(t, ca, tcbInfo(t, digest, 0))
	id, err := d.verify(t, ca, class)
	require.NoError(t, err)
	assert.Equal(t, moduleid.ID(d.chain[1]), id.ID(), "the device, not the alias of this firmware")

	for name, tc := range map[string]struct {
		x    pkix.Extension
		want moduleid.Reason
	}{
		"other firmware":    {tcbInfo(t, make([]byte, 32), 0), moduleid.ReasonMeasurement},
		"debug mode":        {tcbInfo(t, digest, 0x10), moduleid.ReasonMeasurement},
		"malformed TcbInfo": {pkix.Extension{Id: asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1}, Value: []byte{0x30, 5, 1}}, moduleid.ReasonMalformed},
		"critical extension that nobody knows": {pkix.Extension{Id: asn1.ObjectIdentifier{2, 23, 133, 5, 4, 99}, Critical: true, Value: []byte{5, 0}},
			moduleid.ReasonCertificate},
		"no TcbInfo": {pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: []byte{5, 0}}, moduleid.ReasonMeasurement},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newDICE(t, ca, tc.x).verify(t, ca, class)
			var refused *moduleid.RefusedError
			require.True(t, errors.As(err, &refused), "%v", err)
			if name == "other firmware" || name == "no TcbInfo" || name == "critical extension that nobody knows" {
				// Another device of the same maker is not registered either.
				reasons := []moduleid.Reason{}
				for _, f := range refused.Findings {
					reasons = append(reasons, f.Reason)
				}
				assert.Contains(t, reasons, tc.want)
				return
			}
			assert.Equal(t, tc.want, refused.Reason())
		})
	}
}

func TestMCTPCarriesAProof(t *testing.T) {
	r := responder(t, elliptic.P256())
	queue := make(chan []byte, 8)
	noise := true
	tr := spdm.MCTP(func(_ context.Context, m []byte) error {
		if m[0] != 5 {
			return errors.New("not SPDM")
		}
		if noise {
			queue <- []byte{1, 2, 3} // another type's message in between
		}
		queue <- append([]byte{5}, r.Respond(m[1:])...)
		return nil
	}, func(context.Context) ([]byte, error) { return <-queue, nil }, nil)
	chip, err := spdm.NewRequester(tr, spdm.Config{})
	require.NoError(t, err)
	_, err = chip.Prove(t.Context(), moduleid.NewChallenge("node", "bay"))
	require.NoError(t, err)
	require.NoError(t, chip.Close())

	tr = spdm.MCTP(func(context.Context, []byte) error { return nil },
		func(context.Context) ([]byte, error) { return []byte{1}, nil }, nil)
	chip, err = spdm.NewRequester(tr, spdm.Config{})
	require.NoError(t, err)
	_, err = chip.Prove(t.Context(), moduleid.NewChallenge("node", "bay"))
	require.ErrorContains(t, err, "other types")
}

func TestMCTPOfTheKernel(t *testing.T) {
	tr, err := spdm.DialMCTP(0, 9)
	if err != nil {
		require.ErrorContains(t, err, "spdm: ")
		t.Skip("missing: ", err)
	}
	chip, err := spdm.NewRequester(tr, spdm.Config{})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = chip.Prove(ctx, moduleid.NewChallenge("node", "bay"))
	require.Error(t, err, "nobody has that endpoint")
	require.NoError(t, chip.Close())
}

func FuzzRequester(f *testing.F) {
	r := responder(f, elliptic.P256())
	f.Add([]byte{0x10, 4, 0, 0, 0, 1, 0, 0x12}, 0)
	f.Add([]byte{0x12, 2, 0, 0, 1, 0, 0, 0, 0}, 4)
	c := moduleid.NewChallenge("node", "bay")
	f.Fuzz(func(t *testing.T, p []byte, at int) {
		n := 0
		m := &mitm{answer: func(_, rsp []byte) []byte {
			if n++; n-1 == at {
				return p
			}
			return rsp
		}}
		chip, err := spdm.NewRequester(m.connect(r), spdm.Config{})
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		e, err := chip.Prove(ctx, c)
		if err == nil {
			_, err = spdm.Scheme{}.Check(c, e)
			require.NoError(t, err)
		}
	})
}
