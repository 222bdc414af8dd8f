package softtpm

import "encoding/binary"

// How the TPM was shut down.
const (
	shutdownNone  = 0 // the power was cut
	shutdownClear = 1
	shutdownState = 2
)

func startup(t *TPM, c *call) rc {
	kind := c.p.next().u16()
	if c.p.err == 0 && kind > 1 {
		c.p.fail(rcValue)
	}
	if e := c.end(); e != 0 {
		return e
	}
	locality := t.volatile.locality
	if locality != 0 && locality != 3 && locality != 4 {
		return rcLocality
	}
	resume := kind == 1
	if resume && (t.shutdown != shutdownState || t.nonVolatile.saved == nil) {
		t.daUsed = false // libtpms forgets then
		return rcValue.param(1)
	}
	if resume && t.nonVolatile.saved.locality3 != (locality == 3) {
		return rcLocality
	}
	// What a restart keeps and a reset makes anew.
	was := t.nonVolatile.saved
	orderly := t.shutdown != shutdownNone
	restart := was != nil && t.shutdown == shutdownState
	t.started, t.startedAt3 = true, locality == 3
	t.epoch = binary.BigEndian.Uint64(t.random(8))
	t.clockSafe = t.clockSafe && orderly
	t.objs = map[uint32]*object{}
	t.sessions = map[uint32]*session{}
	t.volatile.saved = map[uint32]*savedSession{}
	if restart {
		for h, seq := range was.sessions {
			t.volatile.saved[h] = &savedSession{seq}
		}
	}
	t.exclusive = 0
	switch {
	case resume:
		t.pcrs, t.pcrUpdates = was.pcrs, was.pcrUpdates
		t.platformAuth, t.nullSeed, t.nullProof = was.platformAuth, was.nullSeed, was.nullProof
		t.enabled, t.contexts = was.enabled, was.contexts
		t.resetPCRs(true)
		t.pcrUpdates += 4 // PCRs 17 to 20 were reset
		t.restartCount++
	default:
		if restart {
			t.nullSeed, t.nullProof, t.contexts = was.nullSeed, was.nullProof, was.contexts
			t.pcrUpdates = was.pcrUpdates
			t.restartCount++
		} else {
			t.nullSeed, t.nullProof = t.random(64), t.random(64)
			t.resetCount++
			t.restartCount = 0
		}
		t.platformAuth = nil
		delete(t.policies, rhPlatform)
		t.enabled = map[uint32]bool{rhOwner: true, rhEndorsement: true, rhPlatform: true, rhPlatformNV: true}
		t.resetPCRs(false)
		for _, b := range t.pcrs { // part 1, section 34.3: PCR 0 tells the startup's locality
			b[0][len(b[0])-1] = byte(locality)
		}
		t.pcrUpdates += pcrCount - 4 // one for each PCR that counts
		t.resetNV(!restart, orderly)
	}
	t.startLockout(orderly)
	t.shutdown, t.nonVolatile.saved = shutdownNone, nil
	t.dirty = true
	return 0
}

func shutdown(t *TPM, c *call) rc {
	kind := c.p.next().u16()
	if c.p.err == 0 && kind > 1 {
		c.p.fail(rcValue)
	}
	if e := c.end(); e != 0 {
		return e
	}
	t.clockMs = t.clock()
	t.shutdown, t.nonVolatile.saved = shutdownClear, nil
	if kind == 1 {
		t.shutdown = shutdownState
		pcrs := map[uint16]*[pcrCount][]byte{}
		for alg, b := range t.pcrs {
			kept := *b
			pcrs[alg] = &kept
		}
		t.nonVolatile.saved = &resumable{
			pcrs: pcrs, pcrUpdates: t.pcrUpdates, platformAuth: t.platformAuth, nullSeed: t.nullSeed, nullProof: t.nullProof,
			contexts: t.contexts, enabled: t.enabled, locality3: t.startedAt3, sessions: map[uint32]uint64{},
		}
		for h, s := range t.volatile.saved {
			t.nonVolatile.saved.sessions[h] = s.sequence
		}
	}
	t.daUsed = false
	t.dirty = true
	return 0
}

func selfTest(t *TPM, c *call) rc {
	c.p.next().yesNo()
	return c.end()
}

func incrementalSelfTest(t *TPM, c *call) rc {
	r := c.p.next()
	n := r.u32()
	if r.err == 0 && n > 64 {
		r.fail(rcSize)
	}
	for ; n > 0 && r.err == 0; n-- {
		r.u16()
	}
	if e := c.end(); e != 0 {
		return e
	}
	c.out.u32(0)
	return 0
}

func getTestResult(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	c.out.b2(nil)
	c.out.u32(0)
	return 0
}

func getRandom(t *TPM, c *call) rc {
	n := int(c.p.next().u16())
	if e := c.end(); e != 0 {
		return e
	}
	c.out.b2(t.random(min(n, maxDigest)))
	return 0
}

func stirRandom(t *TPM, c *call) rc {
	c.p.next().b2(128)
	return c.end()
}

func readClock(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	t.timeInfo(&c.out)
	return 0
}

func clockSet(t *TPM, c *call) rc {
	to := c.p.next().u64()
	if e := c.end(); e != 0 {
		return e
	}
	if to > 0xFFFF000000000000 || to < t.clock() {
		return rcValue.param(1)
	}
	t.clockBase += to - t.clock()
	t.clockMs = to
	t.dirty = true
	return 0
}

// clockRateAdjust accepts a rate and keeps its own.
func clockRateAdjust(t *TPM, c *call) rc {
	if v := int8(c.p.next().u8()); v < -3 || v > 3 {
		c.p.fail(rcValue)
	}
	return c.end()
}

func hierarchyChangeAuth(t *TPM, c *call) rc {
	auth := trim(c.p.next().b2(maxDigest))
	if e := c.end(); e != 0 {
		return e
	}
	if c.h[0] == rhPlatform {
		t.platformAuth = auth
		return 0
	}
	t.auths[c.h[0]] = auth
	t.dirty = true
	return 0
}

func setPrimaryPolicy(t *TPM, c *call) rc {
	policy := c.p.next().b2(maxDigest)
	alg := c.p.next().hash(true)
	if e := c.end(); e != 0 {
		return e
	}
	if len(policy) != hashSize(alg) {
		return rcSize.param(1)
	}
	if alg == algNull {
		delete(t.policies, c.h[0])
	} else {
		t.policies[c.h[0]] = authPolicy{alg, policy}
	}
	t.dirty = true
	return 0
}

func hierarchyControl(t *TPM, c *call) rc {
	enable := c.p.next().u32()
	if c.p.err == 0 && enable != rhOwner && enable != rhEndorsement && enable != rhPlatform && enable != rhPlatformNV {
		c.p.fail(rcValue)
	}
	state := c.p.next().yesNo()
	if e := c.end(); e != 0 {
		return e
	}
	auth := c.h[0]
	switch enable {
	case rhPlatform, rhPlatformNV:
		if auth != rhPlatform {
			return rcAuthType
		}
	default:
		if auth != rhPlatform && auth != enable {
			return rcAuthType
		}
	}
	if enable == rhPlatform && state {
		return rcAuthType
	}
	t.enabled[enable] = state
	if !state && enable != rhPlatformNV {
		t.flushHierarchy(enable)
	}
	return 0
}

// flushHierarchy removes the transient objects of a hierarchy.
func (t *TPM) flushHierarchy(hier uint32) {
	for h, o := range t.objs {
		if o.hier == hier {
			delete(t.objs, h)
		}
	}
}

func clearControl(t *TPM, c *call) rc {
	disable := c.p.next().yesNo()
	if e := c.end(); e != 0 {
		return e
	}
	if c.h[0] == rhLockout && !disable {
		return rcAuthFail
	}
	t.disableClear = disable
	t.dirty = true
	return 0
}

func clearTPM(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	if t.disableClear {
		return rcDisabled
	}
	clear(t.seeds[rhOwner])
	t.seeds[rhOwner] = t.random(64)
	t.proofs[rhOwner], t.proofs[rhEndorsement] = t.random(64), t.random(64)
	t.auths = map[uint32][]byte{}
	for _, h := range []uint32{rhOwner, rhEndorsement, rhLockout} {
		delete(t.policies, h)
	}
	t.enabled[rhOwner], t.enabled[rhEndorsement] = true, true
	t.flushHierarchy(rhOwner)
	t.flushHierarchy(rhEndorsement)
	for h, o := range t.persistent {
		if o.hier == rhOwner || o.hier == rhEndorsement {
			delete(t.persistent, h)
		}
	}
	for h, n := range t.nv {
		if n.attrs&nvPlatformCreate == 0 {
			t.undefine(t.nv[h])
		}
	}
	t.resetCount, t.restartCount = 0, 0
	t.clockMs, t.clockBase, t.poweredAt, t.clockSafe = 0, 0, t.cfg.Now(), true
	t.da = newLockout()
	t.rsa = rsaCache{}
	t.pcrUpdates++
	t.dirty = true
	return 0
}

func changePPS(t *TPM, c *call) rc { return t.changeSeed(c, rhPlatform) }

func changeEPS(t *TPM, c *call) rc {
	e := t.changeSeed(c, rhEndorsement)
	if e == 0 {
		t.forgetFactory()
		delete(t.auths, rhEndorsement)
		delete(t.policies, rhEndorsement)
	}
	return e
}

func (t *TPM) changeSeed(c *call, hier uint32) rc {
	if e := c.end(); e != 0 {
		return e
	}
	t.seeds[hier], t.proofs[hier] = t.random(64), t.random(64)
	t.flushHierarchy(hier)
	for h, o := range t.persistent {
		if o.hier == hier {
			delete(t.persistent, h)
		}
	}
	t.rsa = rsaCache{}
	t.pcrUpdates++
	t.dirty = true
	return 0
}

// hierarchyOf returns the hierarchy whose proof an entity's tickets use.
func (t *TPM) hierarchyOf(h uint32) uint32 {
	switch handleType(h) {
	case htTransient, htPersistent:
		return t.object(h).hier
	case htNV:
		if n := t.nv[h]; n.attrs&nvPlatformCreate != 0 {
			return rhPlatform
		}
		return rhOwner
	case htPermanent:
		switch h {
		case rhPlatform, rhEndorsement, rhNull:
			return h
		}
	}
	return rhOwner
}
