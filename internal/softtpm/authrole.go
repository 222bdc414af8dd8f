package softtpm

// policyRequired says whether a policy is the only way to authorise.
func (t *TPM) policyRequired(h uint32, role authRole) bool {
	switch role {
	case roleDup:
		return true
	case roleAdmin:
		switch handleType(h) {
		case htTransient, htPersistent:
			o := t.object(h)
			return o.seq == nil && o.pub.is(attrAdminPolicy)
		case htNV:
			return true
		}
	}
	return false
}

// authAvailable says whether the authorisation value may be used.
func (t *TPM) authAvailable(h uint32, role authRole, d *command) bool {
	switch handleType(h) {
	case htTransient, htPersistent:
		o := t.object(h)
		if o.seq != nil {
			return true
		}
		return o.sens != nil && (o.pub.is(attrUserWithAuth) || role == roleAdmin && !o.pub.is(attrAdminPolicy))
	case htNV:
		n := t.nv[h]
		if d.nvOp == nvOpWrite {
			return n.attrs&nvAuthWrite != 0
		}
		if n.pin() {
			tries, limit := n.pinCounts()
			return n.attrs&nvWritten != 0 && tries < limit
		}
		return n.attrs&nvAuthRead != 0
	}
	return true
}

// policyAvailable says whether the entity has a policy.
func (t *TPM) policyAvailable(h uint32, d *command) bool {
	switch handleType(h) {
	case htTransient, htPersistent:
		o := t.object(h)
		return o.seq == nil && o.sens != nil
	case htNV:
		n := t.nv[h]
		if len(n.policy) == 0 {
			return false
		}
		switch d.nvOp {
		case nvOpWrite:
			return n.attrs&nvPolicyWrite != 0
		case nvOpRead:
			return n.attrs&nvPolicyRead != 0
		}
		return d.cc != ccPolicySecret || n.attrs&nvPolicyRead != 0
	case htPCR:
		return h >= 20 && h <= 22 // they may have policies, which nobody can set
	case htPermanent:
		return t.policies[h].digest != nil
	}
	return false
}

// policyOf returns the policy of an entity.
func (t *TPM) policyOf(h uint32) authPolicy {
	switch handleType(h) {
	case htTransient, htPersistent:
		o := t.object(h)
		return authPolicy{o.pub.nameAlg, o.pub.policy}
	case htNV:
		n := t.nv[h]
		return authPolicy{n.nameAlg, n.policy}
	}
	return t.policies[h]
}

// authValue returns the authorisation value of an entity, without trailing
// zeros.
func (t *TPM) authValue(h uint32) []byte {
	switch handleType(h) {
	case htTransient, htPersistent:
		o := t.object(h)
		switch {
		case o == nil:
		case o.seq != nil:
			return o.seq.auth
		case o.sens != nil:
			return trim(o.sens.auth)
		}
	case htNV:
		if n := t.nv[h]; n != nil {
			return n.auth
		}
	case htPermanent:
		if h == rhPlatform {
			return t.platformAuth
		}
		return t.auths[h]
	}
	return nil
}
