package softtpm

import "bytes"

// Step is one thing that happened to a TPM, in terms that another TPM
// understands too: what was inside of encrypted parameters, and which
// authorisation values went into HMACs, instead of the bytes that only this
// TPM's keys and nonces explain. A stream of steps can be played to any TPM.
type Step struct {
	// Event is "on", "off", or "flush" for what the end of a connection
	// flushed; empty for a command, which the other fields describe.
	Event    string      `json:"event,omitempty"`
	Locality int         `json:"locality,omitempty"`
	Raw      []byte      `json:"raw,omitempty"` // the whole command, when it could not be understood
	CC       uint32      `json:"cc,omitempty"`
	Handles  []uint32    `json:"handles,omitempty"`
	Names    [][]byte    `json:"names,omitempty"` // of the handles
	Sessions []StepAuth  `json:"sessions,omitempty"`
	Params   []byte      `json:"params,omitempty"` // in the clear
	RC       uint32      `json:"rc,omitempty"`
	Handle   uint32      `json:"handle,omitempty"` // of the response
	Out      []byte      `json:"out,omitempty"`    // response parameters in the clear
	BindAuth []byte      `json:"bind,omitempty"`   // with StartAuthSession: the value of what it binds to
	NV       []StepIndex `json:"nv,omitempty"`     // with "on": the indices of the factory
}

// StepAuth is one session of a command.
type StepAuth struct {
	Handle   uint32 `json:"h"`
	Attrs    byte   `json:"attrs"`
	Nonce    []byte `json:"nonce,omitempty"`
	Auth     []byte `json:"auth,omitempty"`     // the password, or the value behind the HMAC
	AuthOut  []byte `json:"auth_out,omitempty"` // the value behind the response's HMAC
	Included bool   `json:"included,omitempty"` // Auth went into the HMAC's key
	Assoc    bool   `json:"assoc,omitempty"`    // it authorises a handle
	Password bool   `json:"password,omitempty"` // Auth went in the clear
	Empty    bool   `json:"empty,omitempty"`    // the HMAC was empty
	Wrong    bool   `json:"wrong,omitempty"`    // the HMAC was wrong
}

// StepIndex is an NV index that the factory made.
type StepIndex struct {
	Public []byte `json:"public"`
	Data   []byte `json:"data,omitempty"`
}

// traceEvent tells of an event.
func (t *TPM) traceEvent(s Step) {
	if t.cfg.Trace != nil {
		t.cfg.Trace(s)
	}
}

// factoryIndices lists the indices that are there when the power comes.
func (t *TPM) factoryIndices() (list []StepIndex) {
	if t.cfg.Trace == nil {
		return nil
	}
	for _, h := range sortedKeys(t.nv) {
		n := t.nv[h]
		if t.materialize(n) {
			list = append(list, StepIndex{n.public(), n.data})
		}
	}
	return list
}

// traceCommand tells of a command; c is nil when its header was wrong.
func (t *TPM) traceCommand(locality int, in []byte, c *call, code rc) {
	if t.cfg.Trace == nil {
		return
	}
	if c == nil || !c.parsed {
		t.cfg.Trace(Step{Locality: locality, Raw: bytes.Clone(in), RC: uint32(code)})
		return
	}
	s := Step{Locality: locality, CC: c.d.cc, Handles: c.h, Names: c.names, Params: c.params, RC: uint32(code), Handle: c.hOut, Out: c.plain}
	if c.d.cc == ccStartAuthSession {
		s.BindAuth = t.authValue(c.h[1])
	}
	for _, u := range c.uses {
		a := StepAuth{Handle: u.h, Attrs: u.attrs, Nonce: u.nonce, Auth: u.auth, AuthOut: u.authOut, Included: u.included, Assoc: u.assoc >= 0, Password: u.password,
			Empty: len(u.mac) == 0, Wrong: u.wrong}
		if u.password {
			a.Auth = u.mac
		}
		s.Sessions = append(s.Sessions, a)
	}
	t.cfg.Trace(s)
}
