package reason

// What a TPM's structure is refused for (quote.ErrMalformed, quote.ErrSignature,
// quote.ErrNonce).
const (
	TooLarge        Code = "too-large"           // longer, or more of it, than is looked at
	NotFromTPM      Code = "not-from-tpm"        // the magic number is not a TPM's
	WrongKind       Code = "wrong-kind"          // a certification for a quote, or the reverse
	CutShort        Code = "cut-short"           // bytes are missing
	TrailingBytes   Code = "trailing-bytes"      // bytes too many
	BadFlag         Code = "bad-flag"            // a yes or no that is neither
	BadSignature    Code = "bad-signature"       // does not verify
	SignatureScheme Code = "signature-scheme"    // another scheme or hash than the key's
	NoNonce         Code = "no-nonce"            // none signed, or one of less than 32 bytes expected
	QuoteNonce      Code = "quote-nonce"         // a quote over another nonce, session, purpose or other bodies
	CertifyNonce    Code = "certification-nonce" // a certification over another nonce, session or key
	NothingSelected Code = "nothing-selected"    // no PCR quoted, or none demanded
	TooManyBanks    Code = "too-many-banks"      // more than three
	SHA1Bank        Code = "sha1-bank"           // quoted or demanded
	UnknownBank     Code = "unknown-bank"        // demanded
	BankTwice       Code = "bank-twice"          // demanded
	ForbiddenPCR    Code = "forbidden-pcr"       // demanded out of order, out of range, or one that software resets
	OtherBank       Code = "other-bank"          // quoted in place of the one demanded
	OtherPCRs       Code = "other-pcrs"          // quoted in place of those demanded
	MorePCRs        Code = "more-pcrs"           // quoted than demanded
	FewerPCRs       Code = "fewer-pcrs"          // quoted than demanded
	Encoding        Code = "selection-encoding"  // the right PCRs, written otherwise, or not to be read
	TooManyValues   Code = "too-many-pcr-values" // more bytes than the PCRs demanded have
	TooFewValues    Code = "too-few-pcr-values"  // fewer
	OtherValues     Code = "other-pcr-values"    // not those that were quoted
)

// What a key is refused for (quote.ErrKey).
const (
	KeyAttributes     Code = "key-attributes"      // not an attestation key's
	NullScheme        Code = "null-scheme"         // an attestation key that leaves its scheme to the caller
	SchemeHash        Code = "scheme-hash"         // weaker than SHA-256, or unknown
	SchemeType        Code = "scheme-type"         // does not fit the key, or unknown
	KeyType           Code = "key-type"            // neither RSA nor ECC
	NotSigning        Code = "not-a-signing-key"   // has symmetric parameters or a KDF
	NameAlgorithm     Code = "name-algorithm"      // weaker than SHA-256, or unknown
	RSASize           Code = "rsa-size"            // not 2048, 3072 or 4096 bits, or no modulus
	RSAExponent       Code = "rsa-exponent"        // not 65537
	ROCA              Code = "roca"                // CVE-2017-15361; of endorsement keys too (attest.ErrUntrustedEK)
	Curve             Code = "curve"               // not P-256, P-384 or P-521
	OffCurve          Code = "off-curve"           // a point that is not on its curve
	OtherKey          Code = "other-key"           // not the key that was certified
	LoadedKey         Code = "loaded-from-outside" // certified, and no object of the TPM's own
	SoftwareKey       Code = "software-key"        // certified, and it may leave or was not made in the TPM
	CertifiedKeyUsage Code = "certified-key-usage" // certified, made in the TPM, and not an unrestricted signing key
	HMACKey           Code = "hmac-key"            // of another length than the one to import
	NotPrimary        Code = "not-primary"         // not a primary key of the endorsement hierarchy
)

// What an endorsement is refused for (attest.ErrUntrustedEK).
const (
	NoAnchors        Code = "no-anchors"
	CertificateCount Code = "certificate-count"
	NoCertificate    Code = "no-certificate"   // can't be read as one
	UnreadableKey    Code = "unreadable-key"   // of a kind that Go can't read, such as RSASSA-PSS
	UnknownTemplate  Code = "unknown-template" // no endorsement key of the TCG's is like that
	IsCA             Code = "is-ca"
	KeyUsage         Code = "key-usage"
	ExtendedKeyUsage Code = "extended-key-usage" // lacks 2.23.133.8.1
	TPMName          Code = "tpm-name"           // manufacturer, model and version are not there
	Chain            Code = "chain"              // leads to no anchor, or has expired
	NotAllowed       Code = "not-allowed"        // not on the list of allowed devices
)

// What enrolment and evidence are refused for, by the classes of attest.
const (
	Malformed          Code = "malformed"            // ErrMalformed, the rest of it
	Version            Code = "version"              // ErrMalformed: one that this program does not read
	NoBinding          Code = "no-binding"           // the session has none to its TLS connection
	NoActivation       Code = "no-open-activation"   // ErrChallenge at enrolment: unknown, used or burnt
	NoChallenge        Code = "no-open-challenge"    // ErrChallenge at appraisal: unknown or used
	OtherDevice        Code = "other-device"         // ErrChallenge: it was minted for another one
	OtherPurpose       Code = "other-purpose"        // ErrChallenge
	OtherSession       Code = "other-session"        // ErrChallenge: a session with another TLS key
	OtherPolicy        Code = "other-policy"         // ErrChallenge: it demands other PCRs than the policy in force
	StoredChallenge    Code = "stored-challenge"     // ErrChallenge: the store gives back what can't be read
	Expired            Code = "expired"              // ErrExpired
	WrongSecret        Code = "wrong-secret"         // ErrActivation: the secret or the HMAC is guessed
	OtherTPM           Code = "other-tpm"            // ErrActivation: the credential is not for this TPM and key
	CSRKey             Code = "csr-key"              // ErrKeyMismatch: not the certified key
	CSRSignature       Code = "csr-signature"        // ErrKeyMismatch: the sender lacks the key
	SessionKey         Code = "session-key"          // ErrKeyMismatch: the session's is not the one enrolled last
	AttestationKey     Code = "attestation-key"      // ErrKeyMismatch: replaced meanwhile
	Bound              Code = "bound"                // ErrBound: to another attestation key
	NotRevoked         Code = "not-revoked"          // ErrBound: released without being revoked
	Revoked            Code = "revoked"              // ErrRevoked
	NotPinned          Code = "not-pinned"           // ErrPin
	ResetCount         Code = "reset-count"          // ErrRolledBack
	RestartCount       Code = "restart-count"        // ErrRolledBack
	Clock              Code = "clock"                // ErrRolledBack
	ResetWithoutReboot Code = "reset-without-reboot" // ErrReset: the TPM started anew beside a running machine
	RebootWithoutReset Code = "reboot-without-reset" // ErrReset: the machine started anew beside a running TPM
	NoBootID           Code = "no-boot-id"           // ErrReset: no longer sent
	Firmware           Code = "firmware"             // ErrFirmware: below the floor
	NoFloor            Code = "firmware-no-floor"    // ErrFirmware: none is set for this maker
	ObscuredFirmware   Code = "firmware-obscured"    // ErrFirmware: the key is not of the endorsement hierarchy
	Unmeasured         Code = "unmeasured"           // ErrUnmeasured
)
