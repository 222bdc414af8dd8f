package softtpm

import "fmt"

// rc is a TPM response code (TPM 2.0 part 2, section 6.6); zero is success.
type rc uint32

func (e rc) Error() string { return fmt.Sprintf("TPM response code 0x%03x", uint32(e)) }

// Format-zero codes.
const (
	rcBadTag          rc = 0x01E
	rcInitialize      rc = 0x100
	rcFailure         rc = 0x101
	rcSequence        rc = 0x103
	rcDisabled        rc = 0x120
	rcExclusive       rc = 0x121
	rcAuthType        rc = 0x124
	rcAuthMissing     rc = 0x125
	rcPolicy          rc = 0x126
	rcPCR             rc = 0x127
	rcPCRChanged      rc = 0x128
	rcTooManyContexts rc = 0x12E
	rcAuthUnavailable rc = 0x12F
	rcReboot          rc = 0x130
	rcCommandSize     rc = 0x142
	rcCommandCode     rc = 0x143
	rcAuthSize        rc = 0x144
	rcAuthContext     rc = 0x145
	rcNVRange         rc = 0x146
	rcNVSize          rc = 0x147
	rcNVLocked        rc = 0x148
	rcNVAuth          rc = 0x149
	rcNVUninitialized rc = 0x14A
	rcNVSpace         rc = 0x14B
	rcNVDefined       rc = 0x14C
	rcBadContext      rc = 0x150
	rcCpHash          rc = 0x151
	rcParent          rc = 0x152
	rcNoResult        rc = 0x154
)

// Format-one codes, to which the dispatcher or the command adds where.
const (
	rcAsymmetric   rc = 0x081
	rcAttributes   rc = 0x082
	rcHash         rc = 0x083
	rcValue        rc = 0x084
	rcHierarchy    rc = 0x085
	rcKeySize      rc = 0x087
	rcMGF          rc = 0x088
	rcMode         rc = 0x089
	rcType         rc = 0x08A
	rcHandle       rc = 0x08B
	rcKDF          rc = 0x08C
	rcRange        rc = 0x08D
	rcAuthFail     rc = 0x08E
	rcNonce        rc = 0x08F
	rcPP           rc = 0x090
	rcScheme       rc = 0x092
	rcSize         rc = 0x095
	rcSymmetric    rc = 0x096
	rcTag          rc = 0x097
	rcSelector     rc = 0x098
	rcInsufficient rc = 0x09A
	rcSignature    rc = 0x09B
	rcKey          rc = 0x09C
	rcPolicyFail   rc = 0x09D
	rcIntegrity    rc = 0x09F
	rcTicket       rc = 0x0A0
	rcReservedBits rc = 0x0A1
	rcBadAuth      rc = 0x0A2
	rcExpired      rc = 0x0A3
	rcPolicyCC     rc = 0x0A4
	rcBinding      rc = 0x0A5
	rcCurve        rc = 0x0A6
	rcECCPoint     rc = 0x0A7
)

// Warnings.
const (
	rcContextGap     rc = 0x901
	rcObjectMemory   rc = 0x902
	rcSessionMemory  rc = 0x903
	rcSessionHandles rc = 0x905
	rcLocality       rc = 0x907
	rcReferenceH0    rc = 0x910
	rcReferenceS0    rc = 0x918
	rcLockout        rc = 0x921
	rcRetry          rc = 0x922
)

func (e rc) format1() bool { return e != 0 && e&0x80 != 0 }

// param, handle and sess say where a format-one code points to; codes that
// carry a position already, and format-zero codes, stay as they are.
func (e rc) param(n int) rc { return e.at(0x40 | rc(n)<<8) }

func (e rc) handle(n int) rc { return e.at(rc(n) << 8) }

func (e rc) sess(n int) rc { return e.at(0x800 | rc(n)<<8) }

func (e rc) at(where rc) rc {
	if !e.format1() || e&0xF40 != 0 {
		return e
	}
	return e | where
}
