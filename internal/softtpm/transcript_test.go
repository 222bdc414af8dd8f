package softtpm_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// recorder passes commands on and writes down what each response says, with
// what must differ between two TPMs masked: keys, nonces, HMACs, tickets,
// private and context blobs, signatures, clock and firmware.
type recorder struct {
	t      transport.TPM
	mutate bool // send mutations of each command before it
	lines  []string
	// reboot shuts the TPM down in order, or cuts its power, and starts it again.
	reboot func(cut bool) transport.TPM
}

// cycle reboots the TPM.
func (r *recorder) cycle(cut bool) { r.t = r.reboot(cut) }

func (r *recorder) Send(cmd []byte) ([]byte, error) {
	cc := binary.BigEndian.Uint32(cmd[6:])
	if r.mutate && mutable(cmd) {
		line, err := r.mutations(cmd)
		if err != nil {
			return nil, err
		}
		r.lines = append(r.lines, fmt.Sprintf("%03x mutated: %s", cc, line))
	}
	rsp, err := r.t.Send(cmd)
	if err != nil {
		return nil, fmt.Errorf("command %x: %w", cmd, err)
	}
	r.lines = append(r.lines, fmt.Sprintf("%03x %s", cc, describe(cc, rsp)))
	return rsp, nil
}

// formats says what the response parameters of a command hold. A capital R
// before the colon says that a handle comes first.
//
//	b byte  h uint16  w uint32  q uint64  = 2B compared  2 2B of which only the size is  x 2B masked
//	P public area  N NV public area  C creation data  T ticket  A attestation  S signature
//	m uint64 masked  * rest compared
var formats = map[uint32]string{
	0x131: "R:PC=T2", 0x153: "2PC=T", 0x157: "R:2", 0x167: "R:2", 0x173: "P22", 0x191: "R:2P2",
	0x17B: "2", 0x176: "R:2", 0x158: "AS", 0x148: "AS", 0x14A: "AS", 0x14C: "AS", 0x184: "AS", 0x14D: "AS", 0x15D: "S", 0x177: "T",
	0x151: "2T", 0x160: "2T", 0x162: "mwwx", 0x161: "R:", 0x168: "22", 0x150: "2", 0x14B: "222", 0x156: "2",
	0x17D: "=T", 0x13E: "=T", 0x15B: "R:", 0x186: "R:", 0x163: "22", 0x154: "2", 0x159: "=", 0x174: "2", 0x181: "mmwwb",
	0x13C: "*", 0x155: "2", 0x17C: "2w", 0x164: "22", 0x193: "22",
}

func describe(cc uint32, rsp []byte) string {
	if len(rsp) < 10 {
		return fmt.Sprintf("malformed %x", rsp)
	}
	if code := binary.BigEndian.Uint32(rsp[6:]); code != 0 {
		return fmt.Sprintf("rc %03x", code)
	}
	tag, b := binary.BigEndian.Uint16(rsp), rsp[10:]
	var out strings.Builder
	out.WriteString("ok")
	format, known := formats[cc]
	if !known {
		format = "*"
	}
	d := &decoder{b: b, out: &out}
	if rest, ok := strings.CutPrefix(format, "R:"); ok {
		fmt.Fprintf(&out, " handle %08x", d.u32())
		format = rest
	}
	if tag == 0x8002 {
		size := int(d.u32())
		params := d.take(size)
		fmt.Fprintf(&out, " sessions[%d]", len(d.b))
		d.b = params
	}
	for _, f := range format {
		d.field(f)
	}
	if d.bad {
		out.WriteString(" MALFORMED")
	} else if len(d.b) > 0 {
		fmt.Fprintf(&out, " REST %x", d.b)
	}
	return out.String()
}

type decoder struct {
	b   []byte
	bad bool
	out *strings.Builder
}

func (d *decoder) take(n int) []byte {
	if n > len(d.b) {
		d.bad = true
		n = len(d.b)
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) num(n int) (v uint64) {
	for _, b := range d.take(n) {
		v = v<<8 | uint64(b)
	}
	return v
}

func (d *decoder) u16() uint16 { return uint16(d.num(2)) }
func (d *decoder) u32() uint32 { return uint32(d.num(4)) }
func (d *decoder) b2() []byte  { return d.take(int(d.u16())) }

func (d *decoder) say(format string, args ...any) { fmt.Fprintf(d.out, " "+format, args...) }

func (d *decoder) field(f rune) {
	switch f {
	case 'b':
		d.say("%02x", d.num(1))
	case 'h':
		d.say("%04x", d.num(2))
	case 'w':
		d.say("%08x", d.num(4))
	case 'q':
		d.say("%016x", d.num(8))
	case 'm':
		d.num(8)
	case '=':
		d.say("=%x", d.b2())
	case '2':
		d.say("[%d]", len(d.b2()))
	case 'x':
		d.b2()
	case '*':
		d.say("*%x", d.b)
		d.b = nil
	case 'P':
		d.public()
	case 'C':
		d.creation()
	case 'T':
		d.say("ticket %04x %08x [%d]", d.u16(), d.u32(), len(d.b2()))
	case 'A':
		d.attest()
	case 'S':
		d.signature()
	}
}

func (d *decoder) nested(f func(*decoder)) {
	in := &decoder{b: d.b2(), out: d.out}
	f(in)
	d.bad = d.bad || in.bad || len(in.b) > 0
}

// modulusSize returns how many bytes the modulus at the end of b has.
func modulusSize(b []byte) int {
	for _, n := range []int{512, 384, 256} {
		if at := len(b) - n - 2; at >= 0 && int(binary.BigEndian.Uint16(b[at:])) == n {
			return n
		}
	}
	return 128
}

// public shows a public area with the key masked.
func (d *decoder) public() {
	d.nested(func(d *decoder) {
		typ, nameAlg := d.u16(), d.u16()
		d.say("public %04x %04x %08x %x", typ, nameAlg, d.u32(), d.b2())
		switch typ {
		case 0x23: // the two coordinates are at the end
			tail := d.b[len(d.b)-2*(2+curveSize(d.b)):]
			d.say("%x", d.b[:len(d.b)-len(tail)])
			d.b = tail
			d.say("x[%d] y[%d]", len(d.b2()), len(d.b2()))
		case 0x01:
			d.say("%x", d.take(len(d.b)-2-modulusSize(d.b)))
			d.say("n[%d]", len(d.b2()))
		default:
			params := len(d.b) - 2 - hashID(tpm2.TPMAlgID(nameAlg)).Size()
			if params < 0 {
				params = 0
			}
			d.say("%x", d.take(params))
			d.say("u[%d]", len(d.b2()))
		}
	})
}

// curveSize finds the size of the coordinates from the end of an ECC public
// area.
func curveSize(b []byte) int {
	for _, n := range []int{32, 48, 66} {
		i := len(b) - 2*(2+n)
		if i >= 0 && int(binary.BigEndian.Uint16(b[i:])) == n && int(binary.BigEndian.Uint16(b[i+2+n:])) == n {
			return n
		}
	}
	return 0
}

// creation shows creation data with the names of the parent masked, unless
// they are a hierarchy's.
func (d *decoder) creation() {
	d.nested(func(d *decoder) {
		n := d.u32()
		d.say("creation pcrs %d", n)
		for range n {
			d.say("%04x %x", d.u16(), d.take(int(d.num(1))))
		}
		d.say("%x loc %02x parent %04x", d.b2(), d.num(1), d.u16())
		d.maskedName()
		d.maskedName()
		d.say("out %x", d.b2())
	})
	// What follows is a digest over the names.
	d.say("[%d]", len(d.b2()))
	d.b = append([]byte{0, 0}, d.b...) // consumed here; the format's = sees nothing
}

func (d *decoder) maskedName() {
	name := d.b2()
	if len(name) == 4 {
		d.say("%x", name)
		return
	}
	d.say("[%d]", len(name))
}

func (d *decoder) attest() {
	d.nested(func(d *decoder) {
		magic, typ := d.u32(), d.u16()
		d.say("attest %08x %04x signer[%d] extra %x", magic, typ, len(d.b2()), d.b2())
		d.take(16) // clock, reset and restart counts
		d.say("safe %02x", d.num(1))
		d.take(8) // firmware version
		switch typ {
		case 0x8017, 0x801A:
			d.maskedName()
			d.maskedName()
		case 0x8019:
			d.take(8 + 8)
			d.take(4 + 4)
			d.say("%02x", d.num(1))
			d.take(8)
		default:
			d.say("%x", d.b)
			d.b = nil
		}
	})
}

func (d *decoder) signature() {
	alg := d.u16()
	d.say("sig %04x", alg)
	switch alg {
	case 0x10:
	case 0x18:
		d.say("%04x r[%d] s[%d]", d.u16(), len(d.b2()), len(d.b2()))
	case 0x05:
		d.say("%04x", d.u16())
		d.b = nil
	default:
		d.say("%04x [%d]", d.u16(), len(d.b2()))
	}
}

// mutable says whether mutations of a command tell something: not where an
// HMAC covers all of it, nor where a mutation may take long or hurt.
func mutable(cmd []byte) bool {
	switch binary.BigEndian.Uint32(cmd[6:]) {
	case 0x144, 0x145, 0x126, 0x139, 0x13A, 0x121, 0x165, 0x17A, 0x161, 0x176:
		return false
	}
	if binary.BigEndian.Uint16(cmd) == 0x8002 && !bytes.Contains(cmd, []byte{0x40, 0, 0, 9, 0, 0}) {
		return false
	}
	return true
}

// mutations sends variants of a command and returns their response codes, runs
// of equal ones counted: each byte behind the header changed in three ways,
// the command cut at each length, and a byte added.
func (r *recorder) mutations(cmd []byte) (string, error) {
	var codes []string
	send := func(m []byte) error {
		binary.BigEndian.PutUint32(m[2:], uint32(len(m)))
		rsp, err := r.t.Send(m)
		if err != nil {
			return fmt.Errorf("mutation %x: %w", m, err)
		}
		code := binary.BigEndian.Uint32(rsp[6:])
		codes = append(codes, fmt.Sprintf("%03x", code))
		if len(rsp) >= 14 && code == 0 && strings.HasPrefix(formats[binary.BigEndian.Uint32(m[6:])], "R:") {
			flush := append([]byte{0x80, 1, 0, 0, 0, 14, 0, 0, 1, 0x65}, rsp[10:14]...)
			if _, err := r.t.Send(flush); err != nil {
				return err
			}
		}
		return nil
	}
	for i := 10; i < len(cmd); i++ {
		for _, x := range []byte{0x01, 0x80, 0xFF} {
			m := bytes.Clone(cmd)
			m[i] ^= x
			if err := send(m); err != nil {
				return "", err
			}
		}
	}
	for n := 10; n < len(cmd); n++ {
		if err := send(bytes.Clone(cmd[:n])); err != nil {
			return "", err
		}
	}
	if err := send(append(bytes.Clone(cmd), 0)); err != nil {
		return "", err
	}
	return runs(codes), nil
}

func runs(codes []string) string {
	var out []string
	for i := 0; i < len(codes); {
		j := i
		for j < len(codes) && codes[j] == codes[i] {
			j++
		}
		if j-i > 1 {
			out = append(out, fmt.Sprintf("%s*%d", codes[i], j-i))
		} else {
			out = append(out, codes[i])
		}
		i = j
	}
	return strings.Join(out, " ")
}
