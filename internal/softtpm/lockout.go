package softtpm

// lockout is the dictionary attack protection (part 1, section 19.8). Times
// are in seconds.
type lockout struct {
	failed          uint32
	maxTries        uint32
	recovery        uint32
	lockoutRecovery uint32
	lockoutEnabled  bool
}

// newLockout is the protection of a TPM that was made, or cleared.
func newLockout() lockout {
	return lockout{maxTries: 3, recovery: 1000, lockoutRecovery: 1000, lockoutEnabled: true}
}

// exempt says whether wrong authorisation values of an entity are not counted.
func (t *TPM) exempt(h uint32) bool {
	switch handleType(h) {
	case htPermanent:
		return h != rhLockout
	case htTransient, htPersistent:
		o := t.object(h)
		return o == nil || o.seq != nil || o.pub.is(attrNoDA)
	case htNV:
		n := t.nv[h]
		return n == nil || n.attrs&nvNoDA != 0
	}
	return true
}

// heal forgives failed tries by the time that has passed.
func (t *TPM) heal() {
	now := t.cfg.Now()
	if t.da.failed > 0 && t.da.recovery > 0 {
		if n := uint32(now.Sub(t.daFailed).Seconds()) / t.da.recovery; n > 0 {
			t.da.failed -= min(n, t.da.failed)
			t.daFailed = now
			t.dirty = true
		}
	}
	if !t.da.lockoutEnabled && t.da.lockoutRecovery > 0 && now.Sub(t.lockedAt).Seconds() >= float64(t.da.lockoutRecovery) {
		t.da.lockoutEnabled = true
		t.dirty = true
	}
}

// lockedOut says whether protected entities, or with lockoutAuth the lockout
// hierarchy, can't be used now.
func (t *TPM) lockedOut(lockoutAuth bool) rc {
	t.heal()
	if lockoutAuth {
		if !t.da.lockoutEnabled {
			return rcLockout
		}
		return 0
	}
	if t.da.failed >= t.da.maxTries {
		return rcLockout
	}
	return 0
}

// daTouched remembers that a protected entity was tried, so that cutting the
// power before the failure is written down counts as one.
func (t *TPM) daTouched() {
	if !t.daUsed {
		t.daUsed = true
		t.dirty = true
	}
}

// authFailed counts a wrong authorisation value.
func (t *TPM) authFailed(h uint32) rc {
	if t.exempt(h) {
		return rcBadAuth
	}
	return t.registerFailure(h)
}

// registerFailure counts a failed try.
func (t *TPM) registerFailure(h uint32) rc {
	t.dirty = true
	if h == rhLockout {
		t.da.lockoutEnabled = false
		t.lockedAt = t.cfg.Now()
		return rcAuthFail
	}
	if t.da.recovery > 0 {
		t.da.failed++
	}
	t.daFailed = t.cfg.Now()
	return rcAuthFail
}

// startLockout applies a startup to the protection.
func (t *TPM) startLockout(orderly bool) {
	now := t.cfg.Now()
	if t.daUsed && !orderly && t.da.recovery > 0 && t.da.failed < t.da.maxTries {
		t.da.failed++
	}
	if !t.da.lockoutEnabled && t.da.lockoutRecovery == 0 {
		t.da.lockoutEnabled = true
	}
	t.daUsed = false
	t.daFailed, t.lockedAt = now, now
}

func dictionaryAttackLockReset(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	t.da.failed = 0
	t.dirty = true
	return 0
}

func dictionaryAttackParameters(t *TPM, c *call) rc {
	tries, recovery, lockoutRecovery := c.p.next().u32(), c.p.next().u32(), c.p.next().u32()
	if e := c.end(); e != 0 {
		return e
	}
	t.da.maxTries, t.da.recovery, t.da.lockoutRecovery = tries, recovery, lockoutRecovery
	if recovery == 0 || t.da.failed == 0 {
		t.daFailed = t.cfg.Now()
	}
	t.dirty = true
	return 0
}
