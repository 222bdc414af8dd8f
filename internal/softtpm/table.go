package softtpm

// handleKind says which handles a command takes.
type handleKind int

const (
	hkObject        handleKind = iota // transient or persistent object
	hkObjectNull                      // the same or TPM_RH_NULL
	hkParent                          // an object or a hierarchy
	hkHierarchyNull                   // owner, endorsement, platform, null
	hkHierarchyAuth                   // owner, endorsement, platform, lockout
	hkEnables                         // owner, endorsement, platform
	hkProvision                       // owner, platform
	hkPlatform
	hkLockout
	hkClear // lockout, platform
	hkEndorsement
	hkNV
	hkNVAuth // owner, platform, an index
	hkPCR
	hkPCRNull
	hkEntity // anything with an authorisation value
	hkEntityNull
	hkContext // a transient object or a session
	hkPolicy  // policy session
	hkHMAC    // HMAC session
)

func (k handleKind) allows(h uint32) bool {
	t := handleType(h)
	object := t == htTransient && h&0xFFFFFF < maxObjects || t == htPersistent
	session := h&0xFFFFFF < maxSessions
	switch k {
	case hkObject:
		return object
	case hkObjectNull:
		return object || h == rhNull
	case hkParent:
		return object || hkHierarchyNull.allows(h)
	case hkHierarchyNull:
		return hkEnables.allows(h) || h == rhNull
	case hkHierarchyAuth:
		return hkEnables.allows(h) || h == rhLockout
	case hkEnables:
		return h == rhOwner || h == rhEndorsement || h == rhPlatform
	case hkProvision:
		return h == rhOwner || h == rhPlatform
	case hkPlatform:
		return h == rhPlatform
	case hkLockout:
		return h == rhLockout
	case hkClear:
		return h == rhLockout || h == rhPlatform
	case hkEndorsement:
		return h == rhEndorsement
	case hkNV:
		return t == htNV
	case hkNVAuth:
		return t == htNV || hkProvision.allows(h)
	case hkPCR:
		return h < pcrCount
	case hkPCRNull:
		return h < pcrCount || h == rhNull
	case hkEntity:
		return object || t == htNV || h < pcrCount || hkHierarchyAuth.allows(h)
	case hkEntityNull:
		return object || t == htNV || h < pcrCount || hkHierarchyAuth.allows(h) || h == rhNull
	case hkContext:
		return t == htTransient && object || (t == htHMAC || t == htPolicy) && session
	case hkPolicy:
		return t == htPolicy && session
	case hkHMAC:
		return t == htHMAC && session
	}
	return false
}

// authRole is the authorisation that a handle needs (part 1, section 19.2).
type authRole int

const (
	roleNone authRole = iota
	roleUser
	roleAdmin
	roleDup
)

type handleSpec struct {
	kind handleKind
	role authRole
}

func none(k handleKind) handleSpec  { return handleSpec{k, roleNone} }
func user(k handleKind) handleSpec  { return handleSpec{k, roleUser} }
func admin(k handleKind) handleSpec { return handleSpec{k, roleAdmin} }
func dup(k handleKind) handleSpec   { return handleSpec{k, roleDup} }

// nvOp says whether a command reads or writes the NV index that authorises it.
type nvOp int

const (
	nvOpNone nvOp = iota
	nvOpRead
	nvOpWrite
)

// command is one row of the command table (part 3).
type command struct {
	cc             uint32
	handles        []handleSpec
	rspHandle      bool // the response has a handle
	dec, enc       bool // the first parameter of command, response can be encrypted
	noSessions     bool
	keepsExclusive bool
	nvOp           nvOp
	nv             bool // TPMA_CC nv: may write to non-volatile memory
	flushed        bool // TPMA_CC flushed
	extensive      bool // TPMA_CC extensive
	run            func(*TPM, *call) rc
}

// attributes returns the TPMA_CC.
func (d *command) attributes() uint32 {
	a := d.cc & 0xFFFF
	flag := func(on bool, bit uint32) {
		if on {
			a |= 1 << bit
		}
	}
	flag(d.nv, 22)
	flag(d.extensive, 23)
	flag(d.flushed, 24)
	a |= uint32(len(d.handles)) << 25
	flag(d.rspHandle, 28)
	return a
}

// Command codes that code refers to.
const (
	ccCreatePrimary           uint32 = 0x131
	ccStartup                 uint32 = 0x144
	ccDuplicate               uint32 = 0x14B
	ccPolicySecret            uint32 = 0x151
	ccCreate                  uint32 = 0x153
	ccPolicyNV                uint32 = 0x149
	ccPolicySigned            uint32 = 0x160
	ccPolicyAuthorize         uint32 = 0x16A
	ccStartAuthSession        uint32 = 0x176
	ccPolicyAuthValue         uint32 = 0x16B
	ccPolicyCommandCode       uint32 = 0x16C
	ccPolicyCounterTimer      uint32 = 0x16D
	ccPolicyCpHash            uint32 = 0x16E
	ccPolicyLocality          uint32 = 0x16F
	ccPolicyNameHash          uint32 = 0x170
	ccPolicyOR                uint32 = 0x171
	ccPolicyPCR               uint32 = 0x17F
	ccPolicyPhysicalPresence  uint32 = 0x187
	ccPolicyDuplicationSelect uint32 = 0x188
	ccPolicyNvWritten         uint32 = 0x18F
	ccPolicyTemplate          uint32 = 0x190
	ccCreateLoaded            uint32 = 0x191
	ccPolicyAuthorizeNV       uint32 = 0x192
)

// table holds every command, by code. It never changes.
var table map[uint32]*command

func init() {
	commands := commandList()
	table = make(map[uint32]*command, len(commands))
	for i := range commands {
		table[commands[i].cc] = &commands[i]
	}
}

// hs is a list of handles.
func hs(s ...handleSpec) []handleSpec { return s }
