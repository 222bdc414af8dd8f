package tpm

import "github.com/google/go-tpm/tpm2"

// Persistent objects (TCG Registry of Reserved TPM 2.0 Handles and Localities).
const (
	HandleSRK         tpm2.TPMHandle = 0x81000001 // storage root key
	HandleLDevID      tpm2.TPMHandle = 0x81000081 // the node's TLS key
	HandleLAK         tpm2.TPMHandle = 0x81000082 // the owner's attestation key, where one is used
	HandleLDevIDOther tpm2.TPMHandle = 0x81000083 // the TLS key's successor, or the TLS key after an odd number of successions

	HandleEKRSA2048 tpm2.TPMHandle = 0x81010001 // EK, template L-1
)

// NV indices. The first block is fixed by the TCG EK Credential Profile 2.5,
// section 2.2.1.4, and by TPM 2.0 Keys for Device Identity and Attestation;
// the second is ours, in the owner's range.
const (
	NVEKCertRSA2048   tpm2.TPMHandle = 0x01C00002 // template L-1
	NVEKCertP256      tpm2.TPMHandle = 0x01C0000A // template L-2
	NVEKCertHRSA2048  tpm2.TPMHandle = 0x01C00012 // template H-1
	NVEKCertHP256     tpm2.TPMHandle = 0x01C00014 // template H-2
	NVEKCertHP384     tpm2.TPMHandle = 0x01C00016 // template H-3
	NVEKCertHRSA3072  tpm2.TPMHandle = 0x01C0001C // template H-6
	NVEKCertHRSA4096  tpm2.TPMHandle = 0x01C0001E // template H-7
	NVEKChainFirst    tpm2.TPMHandle = 0x01C00100
	NVEKChainLast     tpm2.TPMHandle = 0x01C001FF
	NVIDevIDCertFirst tpm2.TPMHandle = 0x01C90000 // IDevID and IAK certificates and their chains
	NVIDevIDCertLast  tpm2.TPMHandle = 0x01C901FF

	NVUpdateFloor      tpm2.TPMHandle = 0x01800100 // counter that guards update's floors
	NVVolumeSystem     tpm2.TPMHandle = 0x01800110 // counter: generation of the system volume
	NVVolumeData       tpm2.TPMHandle = 0x01800111 // counter: generation of the data volume
	NVVolumeFirst      tpm2.TPMHandle = 0x01800112 // counters of further volumes
	NVVolumeLast       tpm2.TPMHandle = 0x01800117
	NVRevocationFirst  tpm2.TPMHandle = 0x01800118 // counters that revoke copies of slots
	NVRevocationLast   tpm2.TPMHandle = 0x0180011F
	NVPolicyFloor      tpm2.TPMHandle = 0x01800120 // fleet-wide policy floor, written by authority-signed policy only
	NVVolumeShareFirst tpm2.TPMHandle = 0x01800130 // key shares that destroying a volume undefines
	NVVolumeShareLast  tpm2.TPMHandle = 0x0180013F
	NVLDevIDCert       tpm2.TPMHandle = 0x01800140 // the owner's certificate of the TLS key
	NVLDevIDCertOther  tpm2.TPMHandle = 0x01800141 // the same: the next one is written beside the last
)

// PCRs as trusttree uses them (TCG PC Client Platform Firmware Profile 1.06,
// section 3.3.4, for 0 to 7).
const (
	PCRFirmwareFirst = 0
	PCRFirmwareLast  = 9
	PCRIMA           = 10 // Linux IMA
	PCRKernel        = 11 // unified kernel image
	PCRModules       = 13 // module inventory; configurable; no volume policy includes it
	PCRMOK           = 14 // shim's machine owner keys
	PCRLatch         = 15 // extended after a volume was unsealed; never appraised as a constant
	PCRDebug         = 16 // resettable: never trusted
	PCRApplication   = 23 // resettable: never trusted
)

// Resettable reports whether software can set a PCR back, so that its value
// proves nothing.
func Resettable(pcr int) bool { return pcr == PCRDebug || pcr == PCRApplication }

// Use is one row of the TPM's map: who uses which handles.
type Use struct {
	First, Last tpm2.TPMHandle
	Owner, What string
}

// Map lists every handle and index that trusttree or the TCG reserve. No two
// rows overlap; a test holds that.
func Map() []Use {
	one := func(h tpm2.TPMHandle, owner, what string) Use { return Use{h, h, owner, what} }
	return []Use{
		one(HandleSRK, "TCG", "storage root key"),
		one(HandleLDevID, "attest", "LDevID, the TLS key"),
		one(HandleLAK, "attest", "LAK"),
		one(HandleLDevIDOther, "attest", "LDevID, the TLS key's successor"),
		{0x81010000, 0x8101FFFF, "TCG", "endorsement keys"},
		{0x81020000, 0x8102FFFF, "TCG", "IDevID and IAK"},
		{0x01C00000, 0x01C07FFF, "TCG", "EK certificates, templates, nonces and chains"},
		{NVIDevIDCertFirst, NVIDevIDCertLast, "TCG", "IDevID and IAK certificates"},
		one(NVUpdateFloor, "update", "counter that guards the floors"),
		one(NVVolumeSystem, "fscrypt", "generation of the system volume"),
		one(NVVolumeData, "fscrypt", "generation of the data volume"),
		{NVVolumeFirst, NVVolumeLast, "fscrypt", "generations of further volumes"},
		{NVRevocationFirst, NVRevocationLast, "fscrypt", "revocation counters of slots"},
		one(NVPolicyFloor, "fscrypt", "fleet-wide policy floor"),
		{NVVolumeShareFirst, NVVolumeShareLast, "fscrypt", "key shares"},
		{NVLDevIDCert, NVLDevIDCertOther, "attest", "owner certificate of the TLS key, old and new"},
	}
}
