package softtpm

import (
	"bytes"
	"encoding/binary"
)

// call is one command while it is executed.
type call struct {
	d      *command
	h      []uint32 // handles
	names  [][]byte // and the names of what they stood for before
	p      *reader  // parameters
	params []byte   // parameter area as it was received
	parsed bool     // handles and sessions are read
	uses   []*use
	out    writer   // response parameters
	plain  []byte   // the same before encryption, for a trace
	hOut   uint32   // response handle
	flush  []uint32 // transient objects that go once the response is made
}

// end is called once all parameters are read.
func (c *call) end() rc {
	if c.p.err != 0 {
		return c.p.err
	}
	if len(c.p.b) != 0 {
		return rcSize
	}
	return 0
}

func errorResponse(tag uint16, e rc) []byte {
	var w writer
	w.u16(tag)
	w.u32(10)
	w.u32(uint32(e))
	return w.b
}

func (t *TPM) execute(in []byte) []byte {
	out, c, e := t.run(in)
	t.borrowed = 0
	if t.failed {
		e = rcFailure
	}
	t.traceCommand(t.volatile.locality, in, c, e)
	switch e {
	case 0:
		return out
	case rcBadTag:
		return errorResponse(0x00C4, e) // as a TPM 1.2 answers
	}
	return errorResponse(stNoSessions, e)
}

// run follows part 3, section 5: header, handles, authorisation, parameters,
// action, response.
func (t *TPM) run(in []byte) ([]byte, *call, rc) {
	r := &reader{b: in}
	tag, size, cc := r.u16(), r.u32(), r.u32()
	switch {
	case r.err != 0:
		return nil, nil, rcInsufficient
	case tag != stNoSessions && tag != stSessions:
		return nil, nil, rcBadTag
	case int64(size) != int64(len(in)) || len(in) > maxCommand:
		return nil, nil, rcCommandSize
	}
	d := table[cc]
	switch {
	case t.failed:
		return nil, nil, rcFailure
	case d == nil:
		return nil, nil, rcCommandCode
	case !t.started && cc != ccStartup:
		return nil, nil, rcInitialize
	case t.started && cc == ccStartup:
		return nil, nil, rcInitialize
	}
	c := &call{d: d, p: r}
	if e := t.handles(c); e != 0 {
		return nil, c, e
	}
	if tag == stSessions {
		n := r.u32()
		if r.err != 0 {
			return nil, c, rcInsufficient
		}
		if n < 9 || int64(n) > int64(len(r.b)) {
			return nil, c, rcSize
		}
		if d.noSessions {
			return nil, c, rcAuthContext
		}
		area := r.bytes(int(n))
		c.params = bytes.Clone(r.b)
		if e := t.authorize(c, area); e != 0 {
			return nil, c, e
		}
	} else {
		for _, h := range d.handles {
			if h.role != roleNone {
				return nil, c, rcAuthMissing
			}
		}
		c.params, c.parsed = bytes.Clone(r.b), true
	}
	c.p = &reader{b: c.params}
	if e := d.run(t, c); e != 0 {
		return nil, c, e
	}
	if t.cfg.Trace != nil {
		c.plain = bytes.Clone(c.out.b)
	}
	out := t.respond(tag, c)
	for _, h := range c.flush {
		delete(t.objs, h)
	}
	return out, c, 0
}

// handles reads the handle area and checks that what it names is there.
func (t *TPM) handles(c *call) rc {
	for i, spec := range c.d.handles {
		h := c.p.u32()
		if c.p.err != 0 {
			return rcInsufficient.handle(i + 1)
		}
		if !spec.kind.allows(h) {
			return rcValue.handle(i + 1)
		}
		c.h = append(c.h, h)
	}
	lent := 0 // each persistent object takes a slot, one that is named twice two
	for i, h := range c.h {
		if handleType(h) == htPersistent {
			if len(t.objs)+lent >= maxObjects {
				return rcObjectMemory
			}
			lent++
		}
		if e := t.present(h, i); e != 0 {
			return e.handle(i + 1)
		}
	}
	t.borrowed = lent
	for _, h := range c.h {
		c.names = append(c.names, t.name(h))
	}
	return 0
}

// present says whether the entity with a handle of a permitted kind exists.
func (t *TPM) present(h uint32, i int) rc {
	switch handleType(h) {
	case htTransient:
		if t.objs[h] == nil {
			return rcReferenceH0 + rc(i)
		}
	case htHMAC, htPolicy:
		if t.sessions[h] == nil {
			if t.sessions[h^(htHMAC^htPolicy)<<24] != nil {
				return rcHandle
			}
			return rcReferenceH0 + rc(i)
		}
	case htPersistent:
		o := t.persistent[h]
		if o == nil {
			return rcHandle
		}
		if !t.hierarchyOn(o.hier) {
			return rcHandle
		}
	case htNV:
		n := t.nv[h]
		if n == nil {
			return rcHandle
		}
		owner := rhOwner
		if n.attrs&nvPlatformCreate != 0 {
			owner = rhPlatformNV
		}
		if !t.enabled[owner] {
			return rcHandle
		}
		if !t.materialize(n) {
			return rcFailure
		}
	case htPermanent:
		if !t.hierarchyOn(h) {
			return rcHierarchy
		}
	}
	return 0
}

// hierarchyOn says whether a hierarchy is enabled.
func (t *TPM) hierarchyOn(h uint32) bool {
	switch h {
	case rhOwner, rhEndorsement, rhPlatform:
		return t.enabled[h]
	}
	return true
}

// name returns the name of an entity (part 1, section 16).
func (t *TPM) name(h uint32) []byte {
	switch handleType(h) {
	case htTransient, htPersistent:
		if o := t.object(h); o != nil {
			return o.name
		}
		return nil
	case htNV:
		if n := t.nv[h]; n != nil {
			return n.name()
		}
		return nil
	}
	return be32(h)
}

// respond builds the response of a command that succeeded.
func (t *TPM) respond(tag uint16, c *call) []byte {
	var w writer
	w.u16(tag)
	w.u32(0)
	w.u32(0)
	if c.d.rspHandle {
		w.u32(c.hOut)
	}
	if tag == stSessions {
		t.respondSessions(c, &w)
	} else {
		w.raw(c.out.b)
		if t.exclusive != 0 && !c.d.keepsExclusive && !c.d.noSessions {
			t.exclusive = 0
		}
	}
	binary.BigEndian.PutUint32(w.b[2:], uint32(len(w.b)))
	return w.b
}
