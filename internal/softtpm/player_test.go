package softtpm_test

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/internal/softtpm"
)

// chip is a TPM with localities and a power switch: softtpm.TPM, or a swtpm.
type chip interface {
	SendAt(locality int, command []byte) ([]byte, error)
	PowerOff()
	PowerOn()
}

// player sends commands to a TPM as the program that made them would: it keeps
// the sessions' keys and nonces, computes HMACs, and encrypts and decrypts
// parameters. It writes down what the TPM answers, in the clear and with what
// is random masked, and checks what can be computed again: response HMACs,
// names, qualified names, creation hashes, signatures.
type player struct {
	t        chip
	lines    []string
	sent     [][]byte // command behind each line
	sessions map[uint32]*playSession
	known    map[uint32]*knownObject
	saved    map[string]*knownObject // by context
	provide  []softtpm.StepIndex     // factory's indices, to be made after the first startup
	swaps    []swap
}

// playSession is the program's side of a session.
type playSession struct {
	alg      tpm2.TPMAlgID
	sym      uint16 // algorithm; bits and mode follow
	bits     uint16
	key      []byte
	nonceTPM []byte
}

// knownObject is what the program knows of a loaded object.
type knownObject struct {
	public      []byte // TPMT_PUBLIC
	name, qname []byte
}

// swap is a value of the TPM that was recorded and the same of the TPM that is
// played to.
type swap struct{ from, to []byte }

func newPlayer(t chip) *player {
	return &player{t: t, sessions: map[uint32]*playSession{}, known: map[uint32]*knownObject{}, saved: map[string]*knownObject{}}
}

func hashID(alg tpm2.TPMAlgID) crypto.Hash {
	switch alg {
	case tpm2.TPMAlgSHA1:
		return crypto.SHA1
	case tpm2.TPMAlgSHA384:
		return crypto.SHA384
	case tpm2.TPMAlgSHA512:
		return crypto.SHA512
	}
	return crypto.SHA256
}

func hashed(alg tpm2.TPMAlgID, parts ...[]byte) []byte {
	h := hashID(alg).New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

func (s *playSession) mac(key []byte, parts ...[]byte) []byte {
	m := hmac.New(hashID(s.alg).New, key)
	for _, p := range parts {
		m.Write(p)
	}
	return m.Sum(nil)
}

// crypt encrypts or decrypts a parameter in place.
func (s *playSession) crypt(auth, newer, older, data []byte, encrypt bool) {
	key := append(bytes.Clone(s.key), auth...)
	if s.sym == uint16(tpm2.TPMAlgXOR) {
		mask := tpm2.KDFa(hashID(s.alg), key, "XOR", newer, older, len(data)*8)
		for i := range data {
			data[i] ^= mask[i]
		}
		return
	}
	n := int(s.bits) / 8
	kiv := tpm2.KDFa(hashID(s.alg), key, "CFB", newer, older, (n+16)*8)
	b, err := aes.NewCipher(kiv[:n])
	if err != nil {
		return
	}
	iv := kiv[n:]
	for len(data) > 0 { // CFB
		mask := make([]byte, 16)
		b.Encrypt(mask, iv)
		var next []byte
		for i := range min(16, len(data)) {
			c := data[i] ^ mask[i]
			if encrypt {
				next = append(next, c)
			} else {
				next = append(next, data[i])
			}
			data[i] = c
		}
		iv, data = append(next, make([]byte, 16-len(next))...), data[len(next):]
	}
}

const (
	attrContinue, attrDecrypt, attrEncrypt = 0x01, 0x20, 0x40
	pwHandle                               = 0x40000009
)

// answer is what a command was answered, in the clear.
type answer struct {
	rc     uint32
	handle uint32
	out    []byte
}

// send plays one command.
func (p *player) send(s softtpm.Step) answer {
	cmd := s.Raw
	if cmd == nil {
		cmd = p.command(s)
	}
	for len(p.sent) < len(p.lines) {
		p.sent = append(p.sent, nil)
	}
	p.sent = append(p.sent, append([]byte{byte(s.Locality)}, cmd...))
	rsp, err := p.t.SendAt(s.Locality, cmd)
	cc := binary.BigEndian.Uint32(append(bytes.Clone(cmd), make([]byte, 10)...)[6:])
	if err != nil || len(rsp) < 10 {
		p.lines = append(p.lines, fmt.Sprintf("%03x no answer: %v", cc, err))
		return answer{rc: 0xFFFFFFFF}
	}
	a := answer{rc: binary.BigEndian.Uint32(rsp[6:])}
	if a.rc != 0 || s.Raw != nil {
		p.lines = append(p.lines, fmt.Sprintf("%03x %s", cc, describe(cc, rsp)))
		return a
	}
	rest := rsp[10:]
	plain := append([]byte{0x80, 1}, rsp[2:10]...)
	if strings.HasPrefix(formats[cc], "R:") && len(rest) >= 4 {
		a.handle = binary.BigEndian.Uint32(rest)
		plain = append(plain, rest[:4]...)
		rest = rest[4:]
	}
	notes := ""
	if len(s.Sessions) > 0 {
		d := &decoder{b: rest, out: new(strings.Builder)}
		size := int(d.u32())
		rest = bytes.Clone(d.take(size))
		notes = p.response(s, rest, d)
	}
	a.out = rest
	plain = append(plain, rest...)
	text := describe(cc, plain)
	if cc == 0x17A && !comparable17A(s.Params) {
		text = "ok capability not compared"
	}
	p.lines = append(p.lines, fmt.Sprintf("%03x %s%s%s", cc, text, notes, p.learn(s, a)))
	return a
}

// comparable17A says whether a capability is one in which TPMs of different
// makes must agree: handles, PCR banks, and the variable properties of lockout
// and startup.
func comparable17A(params []byte) bool {
	d := &decoder{b: params, out: new(strings.Builder)}
	capability, property, count := d.u32(), d.u32(), d.u32()
	switch capability {
	case 1:
		return property>>24 != 1 || count > 0
	case 5:
		return true
	case 6:
		return property >= 0x20E && property+count <= 0x212
	}
	return false
}

// command builds a command.
func (p *player) command(s softtpm.Step) []byte {
	params := bytes.Clone(s.Params)
	tag := uint16(0x8001)
	var handles, area []byte
	cpParts := [][]byte{u32(s.CC)}
	for i, h := range s.Handles {
		handles = append(handles, u32(h)...)
		cpParts = append(cpParts, p.name(h, s, i))
	}
	if len(s.Sessions) > 0 {
		tag = 0x8002
		for _, a := range s.Sessions {
			if ps := p.sessions[a.Handle]; ps != nil && a.Attrs&attrDecrypt != 0 && len(params) >= 2 {
				n := int(binary.BigEndian.Uint16(params))
				if 2+n <= len(params) {
					ps.crypt(a.Auth, a.Nonce, ps.nonceTPM, params[2:2+n], true)
				}
			}
		}
		for i, a := range s.Sessions {
			area = append(area, u32(a.Handle)...)
			area = append(area, b2(a.Nonce)...)
			area = append(area, a.Attrs)
			area = append(area, b2(p.hmac(s, i, append(cpParts, params)))...)
		}
		area = append(u32(uint32(len(area))), area...)
	}
	body := append(append(handles, area...), params...)
	return append(append(append(u16(tag), u32(uint32(10+len(body)))...), u32(s.CC)...), body...)
}

// name is the name of a command's i-th handle.
func (p *player) name(h uint32, s softtpm.Step, i int) []byte {
	if o := p.known[h]; o != nil {
		return o.name
	}
	if i < len(s.Names) {
		return s.Names[i]
	}
	return u32(h)
}

// hmac makes what stands in the HMAC's place of a command's i-th session.
func (p *player) hmac(s softtpm.Step, i int, cpParts [][]byte) []byte {
	a := s.Sessions[i]
	ps := p.sessions[a.Handle]
	switch {
	case a.Handle == pwHandle || a.Password:
		return a.Auth
	case a.Empty || ps == nil:
		return nil
	case a.Wrong:
		return make([]byte, hashID(ps.alg).Size())
	}
	return ps.mac(ps.hmacKey(a.Included, a.Auth), hashed(ps.alg, cpParts...), a.Nonce, ps.nonceTPM, p.extra(s, i), []byte{a.Attrs})
}

func (s *playSession) hmacKey(included bool, auth []byte) []byte {
	if included {
		return append(bytes.Clone(s.key), auth...)
	}
	return s.key
}

// extra are the nonces of other sessions that encrypt, which the first
// session's HMAC covers when it authorises.
func (p *player) extra(s softtpm.Step, i int) (extra []byte) {
	if i != 0 || !s.Sessions[0].Assoc {
		return nil
	}
	for _, bit := range []byte{attrDecrypt, attrEncrypt} {
		for j, v := range s.Sessions {
			if ps := p.sessions[v.Handle]; j > 0 && ps != nil && v.Attrs&bit != 0 && (bit == attrDecrypt || v.Attrs&attrDecrypt == 0) {
				extra = append(extra, ps.nonceTPM...)
			}
		}
	}
	return extra
}

// response reads the response's sessions, checks their HMACs, and decrypts the
// first parameter in place.
func (p *player) response(s softtpm.Step, params []byte, d *decoder) (notes string) {
	encrypted := bytes.Clone(params)
	for _, a := range s.Sessions {
		nonce, attrs, got := bytes.Clone(d.b2()), byte(d.num(1)), d.b2()
		notes += fmt.Sprintf(" s[%d %02x %d]", len(nonce), attrs, len(got))
		ps := p.sessions[a.Handle]
		if ps == nil {
			continue
		}
		ps.nonceTPM = nonce
		if len(got) > 0 {
			rp := hashed(ps.alg, u32(0), u32(s.CC), encrypted)
			if !hmac.Equal(got, ps.mac(ps.hmacKey(a.Included, a.AuthOut), rp, nonce, a.Nonce, []byte{attrs})) {
				notes += " WRONG HMAC"
			}
		}
		if a.Attrs&attrEncrypt != 0 && len(params) >= 2 {
			if n := int(binary.BigEndian.Uint16(params)); 2+n <= len(params) {
				ps.crypt(a.AuthOut, nonce, a.Nonce, params[2:2+n], false)
			}
		}
		if a.Attrs&attrContinue == 0 {
			delete(p.sessions, a.Handle)
		}
	}
	if d.bad || len(d.b) > 0 {
		notes += " MALFORMED SESSIONS"
	}
	return notes
}

// salted makes the encrypted salt for a key that is loaded.
func (p *player) salted(key uint32) (salt, secret []byte) {
	o := p.known[key]
	if o == nil {
		return nil, nil
	}
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](o.public)
	if err != nil {
		return nil, nil
	}
	k, err := tpm2.ImportEncapsulationKey(pub)
	if err != nil {
		return nil, nil
	}
	if salt, secret, err = tpm2.CreateEncryptedSalt(rand.Reader, k); err != nil {
		return nil, nil
	}
	return salt, secret
}

// startSession plays TPM2_StartAuthSession: it salts for the key that this TPM
// has, unless the recorded salt was not accepted either.
func (p *player) startSession(s softtpm.Step) answer {
	d := &decoder{b: s.Params, out: new(strings.Builder)}
	nonce, secret, rest := d.b2(), d.b2(), d.b
	d.num(1) // kind
	ps := &playSession{sym: d.u16()}
	if ps.sym != uint16(tpm2.TPMAlgNull) {
		ps.bits = d.u16()
		if ps.sym != uint16(tpm2.TPMAlgXOR) {
			d.u16() // mode
		}
	}
	ps.alg = tpm2.TPMAlgID(d.u16())
	var salt []byte
	if s.RC == 0 && s.Handles[0] != uint32(tpm2.TPMRHNull) {
		if salt, secret = p.salted(s.Handles[0]); salt == nil {
			p.lines = append(p.lines, "176 no key to salt for")
		}
	}
	s.Params = append(append(b2(nonce), b2(secret)...), rest...)
	a := p.send(s)
	if a.rc != 0 {
		return a
	}
	ps.nonceTPM = bytes.Clone((&decoder{b: a.out, out: new(strings.Builder)}).b2())
	if s.Handles[0] != uint32(tpm2.TPMRHNull) || s.Handles[1] != uint32(tpm2.TPMRHNull) {
		ps.key = tpm2.KDFa(hashID(ps.alg), append(bytes.Clone(s.BindAuth), salt...), "ATH", ps.nonceTPM, nonce, hashID(ps.alg).Size()*8)
	}
	p.sessions[a.handle] = ps
	return a
}
