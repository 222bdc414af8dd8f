package softtpm

import (
	"bytes"
	"crypto/hmac"
)

// savedSession is a session whose context was saved: only the context with the
// newest sequence number can be loaded.
type savedSession struct{ sequence uint64 }

// contextKey makes the keys that protect a saved context; they are lost at a
// TPM reset, because they depend on the null proof, and when the hierarchy is
// cleared, because they depend on its proof.
func (t *TPM) contextKey(label string, seq uint64, h, hier uint32) []byte {
	key := bytes.Join([][]byte{t.nullProof, t.proofs[rhPlatform], t.proof(hier)}, nil)
	return kdfa(algSHA256, key, label, be64(seq), be32(h), 256)
}

func (t *TPM) contextBlob(seq uint64, h, hier uint32, body []byte) []byte {
	body = bytes.Clone(body)
	cfb(t.contextKey("CONTEXT", seq, h, hier), make([]byte, 16), body, true)
	var w writer
	w.b2(mac(algSHA256, t.contextKey("INTEGRITY", seq, h, hier), be32(hier), body))
	w.raw(body)
	return w.b
}

func contextSave(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	h := c.h[0]
	t.contexts++
	seq := t.contexts
	hier := rhNull
	saved := h
	var body []byte
	if handleType(h) == htTransient {
		o := t.objs[h]
		if o.seq != nil && !o.seq.savable() {
			return rcType.handle(1)
		}
		hier, body = o.hier, o.marshal()
		saved = 0x80000000
		if o.seq != nil {
			saved = 0x80000001
		} else if o.stClear {
			saved = 0x80000002
		}
	} else {
		s := t.sessions[h]
		body = s.marshal()
		delete(t.sessions, h)
		t.volatile.saved[h] = &savedSession{seq}
		if t.exclusive == h {
			t.exclusive = 0
		}
	}
	blob := t.contextBlob(seq, saved, hier, body)
	if len(blob) > maxContext {
		return rcFailure
	}
	c.out.u64(seq)
	c.out.u32(saved)
	c.out.u32(hier)
	c.out.b2(blob)
	return 0
}

const (
	maxContext        = 3600
	maxSessionContext = 2048 // of a session
)

func contextLoad(t *TPM, c *call) rc {
	r := c.p.next()
	seq, h, hier := r.u64(), r.u32(), r.u32()
	if r.err == 0 && !hkHierarchyNull.allows(hier) {
		r.fail(rcValue)
	}
	blob := r.b2(maxContext)
	if e := c.end(); e != 0 {
		return e
	}
	switch handleType(h) {
	case htTransient:
		if h > 0x80000002 {
			return rcValue.param(1)
		}
	case htHMAC, htPolicy:
	default:
		return rcValue.param(1)
	}
	sum, body, ok := lengthPrefixed(blob)
	if !ok {
		return rcSize.param(1)
	}
	if !hmac.Equal(sum, mac(algSHA256, t.contextKey("INTEGRITY", seq, h, hier), be32(hier), body)) {
		return rcIntegrity.param(1)
	}
	body = bytes.Clone(body)
	cfb(t.contextKey("CONTEXT", seq, h, hier), make([]byte, 16), body, false)
	if handleType(h) == htTransient {
		if !t.hierarchyOn(hier) {
			return rcHierarchy.param(1)
		}
		o, ok := unmarshalObject(body)
		if !ok {
			return rcIntegrity.param(1)
		}
		var e rc
		c.hOut, e = t.alloc(o)
		return e
	}
	was := t.volatile.saved[h]
	if was == nil || was.sequence != seq {
		return rcHandle.param(1)
	}
	if len(t.sessions) >= maxLoadedSessions {
		return rcSessionMemory
	}
	s, ok := unmarshalSession(body)
	if !ok {
		return rcIntegrity.param(1)
	}
	delete(t.volatile.saved, h)
	s.client = t.client
	t.sessions[h] = s
	c.hOut = h
	return 0
}
