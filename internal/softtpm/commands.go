package softtpm

// commandList lists what this TPM implements, in the order of the codes. All
// other codes answer TPM_RC_COMMAND_CODE.
func commandList() []command {
	return []command{
		{cc: 0x11F, handles: hs(admin(hkNV), user(hkPlatform)), nv: true, run: nvUndefineSpaceSpecial},                                    // NV_UndefineSpaceSpecial
		{cc: 0x120, handles: hs(user(hkProvision), none(hkObject)), nv: true, run: evictControl},                                          // EvictControl
		{cc: 0x121, handles: hs(user(hkEnables)), nv: true, extensive: true, run: hierarchyControl},                                       // HierarchyControl
		{cc: 0x122, handles: hs(user(hkProvision), none(hkNV)), nv: true, run: nvUndefineSpace},                                           // NV_UndefineSpace
		{cc: 0x124, handles: hs(user(hkPlatform)), nv: true, extensive: true, run: changeEPS},                                             // ChangeEPS
		{cc: 0x125, handles: hs(user(hkPlatform)), nv: true, extensive: true, run: changePPS},                                             // ChangePPS
		{cc: 0x126, handles: hs(user(hkClear)), nv: true, extensive: true, run: clearTPM},                                                 // Clear
		{cc: 0x127, handles: hs(user(hkClear)), nv: true, run: clearControl},                                                              // ClearControl
		{cc: 0x128, handles: hs(user(hkProvision)), nv: true, run: clockSet},                                                              // ClockSet
		{cc: 0x129, handles: hs(user(hkHierarchyAuth)), dec: true, nv: true, run: hierarchyChangeAuth},                                    // HierarchyChangeAuth
		{cc: 0x12A, handles: hs(user(hkProvision)), dec: true, nv: true, run: nvDefineSpace},                                              // NV_DefineSpace
		{cc: 0x12E, handles: hs(user(hkHierarchyAuth)), dec: true, nv: true, run: setPrimaryPolicy},                                       // SetPrimaryPolicy
		{cc: 0x130, handles: hs(user(hkProvision)), run: clockRateAdjust},                                                                 // ClockRateAdjust
		{cc: 0x131, handles: hs(user(hkHierarchyNull)), rspHandle: true, dec: true, enc: true, run: createPrimary},                        // CreatePrimary
		{cc: 0x132, handles: hs(user(hkProvision)), nv: true, run: nvGlobalWriteLock},                                                     // NV_GlobalWriteLock
		{cc: 0x134, handles: hs(user(hkNVAuth), none(hkNV)), nvOp: nvOpWrite, nv: true, run: nvIncrement},                                 // NV_Increment
		{cc: 0x135, handles: hs(user(hkNVAuth), none(hkNV)), nvOp: nvOpWrite, nv: true, run: nvSetBits},                                   // NV_SetBits
		{cc: 0x136, handles: hs(user(hkNVAuth), none(hkNV)), dec: true, nvOp: nvOpWrite, nv: true, run: nvExtend},                         // NV_Extend
		{cc: 0x137, handles: hs(user(hkNVAuth), none(hkNV)), dec: true, nvOp: nvOpWrite, nv: true, run: nvWrite},                          // NV_Write
		{cc: 0x138, handles: hs(user(hkNVAuth), none(hkNV)), nvOp: nvOpWrite, nv: true, run: nvWriteLock},                                 // NV_WriteLock
		{cc: 0x139, handles: hs(user(hkLockout)), nv: true, run: dictionaryAttackLockReset},                                               // DictionaryAttackLockReset
		{cc: 0x13A, handles: hs(user(hkLockout)), nv: true, run: dictionaryAttackParameters},                                              // DictionaryAttackParameters
		{cc: 0x13B, handles: hs(admin(hkNV)), dec: true, nv: true, run: nvChangeAuth},                                                     // NV_ChangeAuth
		{cc: 0x13C, handles: hs(user(hkPCRNull)), dec: true, nv: true, run: pcrEvent},                                                     // PCR_Event
		{cc: 0x13D, handles: hs(user(hkPCR)), nv: true, run: pcrReset},                                                                    // PCR_Reset
		{cc: 0x13E, handles: hs(user(hkObject)), dec: true, enc: true, flushed: true, run: sequenceComplete},                              // SequenceComplete
		{cc: 0x142, nv: true, run: incrementalSelfTest},                                                                                   // IncrementalSelfTest
		{cc: 0x143, nv: true, run: selfTest},                                                                                              // SelfTest
		{cc: 0x144, noSessions: true, nv: true, run: startup},                                                                             // Startup
		{cc: 0x145, nv: true, run: shutdown},                                                                                              // Shutdown
		{cc: 0x146, dec: true, nv: true, run: stirRandom},                                                                                 // StirRandom
		{cc: 0x147, handles: hs(admin(hkObject), user(hkObject)), dec: true, enc: true, run: activateCredential},                          // ActivateCredential
		{cc: 0x148, handles: hs(admin(hkObject), user(hkObjectNull)), dec: true, enc: true, run: certify},                                 // Certify
		{cc: 0x149, handles: hs(user(hkNVAuth), none(hkNV), none(hkPolicy)), dec: true, nvOp: nvOpRead, run: policyNV},                    // PolicyNV
		{cc: 0x14A, handles: hs(user(hkObjectNull), none(hkObject)), dec: true, enc: true, run: certifyCreation},                          // CertifyCreation
		{cc: 0x14B, handles: hs(dup(hkObject), none(hkObjectNull)), dec: true, enc: true, run: duplicate},                                 // Duplicate
		{cc: 0x14C, handles: hs(user(hkEndorsement), user(hkObjectNull)), dec: true, enc: true, run: getTime},                             // GetTime
		{cc: 0x14D, handles: hs(user(hkEndorsement), user(hkObjectNull), none(hkHMAC)), dec: true, enc: true, run: getSessionAuditDigest}, // GetSessionAuditDigest
		{cc: 0x14E, handles: hs(user(hkNVAuth), none(hkNV)), enc: true, nvOp: nvOpRead, run: nvRead},                                      // NV_Read
		{cc: 0x14F, handles: hs(user(hkNVAuth), none(hkNV)), nvOp: nvOpRead, nv: true, run: nvReadLock},                                   // NV_ReadLock
		{cc: 0x150, handles: hs(admin(hkObject), none(hkObject)), dec: true, enc: true, run: objectChangeAuth},                            // ObjectChangeAuth
		{cc: 0x151, handles: hs(user(hkEntity), none(hkPolicy)), dec: true, enc: true, run: policySecret},                                 // PolicySecret
		{cc: 0x153, handles: hs(user(hkObject)), dec: true, enc: true, run: create},                                                       // Create
		{cc: 0x154, handles: hs(user(hkObject)), dec: true, enc: true, run: ecdhZGen},                                                     // ECDH_ZGen
		{cc: 0x155, handles: hs(user(hkObject)), dec: true, enc: true, run: hmacCommand},                                                  // HMAC
		{cc: 0x156, handles: hs(user(hkObject)), dec: true, enc: true, run: importObject},                                                 // Import
		{cc: 0x157, handles: hs(user(hkObject)), rspHandle: true, dec: true, enc: true, run: load},                                        // Load
		{cc: 0x158, handles: hs(user(hkObjectNull)), dec: true, enc: true, run: quote},                                                    // Quote
		{cc: 0x159, handles: hs(user(hkObject)), dec: true, enc: true, run: rsaDecrypt},                                                   // RSA_Decrypt
		{cc: 0x15B, handles: hs(user(hkObject)), rspHandle: true, dec: true, run: hmacStart},                                              // HMAC_Start
		{cc: 0x15C, handles: hs(user(hkObject)), dec: true, run: sequenceUpdate},                                                          // SequenceUpdate
		{cc: 0x15D, handles: hs(user(hkObject)), dec: true, run: sign},                                                                    // Sign
		{cc: 0x15E, handles: hs(user(hkObject)), enc: true, run: unseal},                                                                  // Unseal
		{cc: 0x160, handles: hs(none(hkObject), none(hkPolicy)), dec: true, enc: true, run: policySigned},                                 // PolicySigned
		{cc: 0x161, rspHandle: true, noSessions: true, run: contextLoad},                                                                  // ContextLoad
		{cc: 0x162, handles: hs(none(hkContext)), noSessions: true, run: contextSave},                                                     // ContextSave
		{cc: 0x163, handles: hs(none(hkObject)), enc: true, run: ecdhKeyGen},                                                              // ECDH_KeyGen
		{cc: 0x164, handles: hs(user(hkObject)), enc: true, run: encryptDecrypt},                                                          // EncryptDecrypt
		{cc: 0x165, noSessions: true, run: flushContext},                                                                                  // FlushContext
		{cc: 0x167, rspHandle: true, dec: true, enc: true, run: loadExternal},                                                             // LoadExternal
		{cc: 0x168, handles: hs(none(hkObject)), dec: true, enc: true, run: makeCredential},                                               // MakeCredential
		{cc: 0x169, handles: hs(none(hkNV)), enc: true, run: nvReadPublic},                                                                // NV_ReadPublic
		{cc: 0x16A, handles: hs(none(hkPolicy)), dec: true, run: policyAuthorize},                                                         // PolicyAuthorize
		{cc: 0x16B, handles: hs(none(hkPolicy)), run: policyAuthValue},                                                                    // PolicyAuthValue
		{cc: 0x16C, handles: hs(none(hkPolicy)), run: policyCommandCode},                                                                  // PolicyCommandCode
		{cc: 0x16D, handles: hs(none(hkPolicy)), dec: true, run: policyCounterTimer},                                                      // PolicyCounterTimer
		{cc: 0x16E, handles: hs(none(hkPolicy)), dec: true, run: policyCpHash},                                                            // PolicyCpHash
		{cc: 0x16F, handles: hs(none(hkPolicy)), run: policyLocality},                                                                     // PolicyLocality
		{cc: 0x170, handles: hs(none(hkPolicy)), dec: true, run: policyNameHash},                                                          // PolicyNameHash
		{cc: 0x171, handles: hs(none(hkPolicy)), run: policyOR},                                                                           // PolicyOR
		{cc: 0x172, handles: hs(none(hkPolicy)), dec: true, run: policyTicket},                                                            // PolicyTicket
		{cc: 0x173, handles: hs(none(hkObject)), enc: true, run: readPublic},                                                              // ReadPublic
		{cc: 0x174, handles: hs(none(hkObject)), dec: true, enc: true, run: rsaEncrypt},                                                   // RSA_Encrypt
		{cc: 0x176, handles: hs(none(hkObjectNull), none(hkEntityNull)), rspHandle: true, dec: true, enc: true, run: startAuthSession},    // StartAuthSession
		{cc: 0x177, handles: hs(none(hkObject)), dec: true, run: verifySignature},                                                         // VerifySignature
		{cc: 0x178, run: eccParameters},                                     // ECC_Parameters
		{cc: 0x17A, run: getCapability},                                     // GetCapability
		{cc: 0x17B, enc: true, run: getRandom},                              // GetRandom
		{cc: 0x17C, enc: true, run: getTestResult},                          // GetTestResult
		{cc: 0x17D, dec: true, enc: true, run: hashCommand},                 // Hash
		{cc: 0x17E, run: pcrRead},                                           // PCR_Read
		{cc: 0x17F, handles: hs(none(hkPolicy)), dec: true, run: policyPCR}, // PolicyPCR
		{cc: 0x180, handles: hs(none(hkPolicy)), run: policyRestart},        // PolicyRestart
		{cc: 0x181, keepsExclusive: true, run: readClock},                   // ReadClock
		{cc: 0x182, handles: hs(user(hkPCRNull)), nv: true, run: pcrExtend}, // PCR_Extend
		{cc: 0x184, handles: hs(user(hkObjectNull), user(hkNVAuth), none(hkNV)), dec: true, enc: true, nvOp: nvOpRead, run: nvCertify}, // NV_Certify
		{cc: 0x185, handles: hs(user(hkPCRNull), user(hkObject)), dec: true, nv: true, flushed: true, run: eventSequenceComplete},      // EventSequenceComplete
		{cc: 0x186, rspHandle: true, dec: true, run: hashSequenceStart},                                                                // HashSequenceStart
		{cc: 0x187, handles: hs(none(hkPolicy)), run: policyPhysicalPresence},                                                          // PolicyPhysicalPresence
		{cc: 0x188, handles: hs(none(hkPolicy)), dec: true, run: policyDuplicationSelect},                                              // PolicyDuplicationSelect
		{cc: 0x189, handles: hs(none(hkPolicy)), enc: true, run: policyGetDigest},                                                      // PolicyGetDigest
		{cc: 0x18A, run: testParms},                                                                                  // TestParms
		{cc: 0x18C, handles: hs(none(hkPolicy)), run: policyPassword},                                                // PolicyPassword
		{cc: 0x18F, handles: hs(none(hkPolicy)), run: policyNvWritten},                                               // PolicyNvWritten
		{cc: 0x190, handles: hs(none(hkPolicy)), dec: true, run: policyTemplate},                                     // PolicyTemplate
		{cc: 0x191, handles: hs(user(hkParent)), rspHandle: true, dec: true, enc: true, run: createLoaded},           // CreateLoaded
		{cc: 0x192, handles: hs(user(hkNVAuth), none(hkNV), none(hkPolicy)), nvOp: nvOpRead, run: policyAuthorizeNV}, // PolicyAuthorizeNV
		{cc: 0x193, handles: hs(user(hkObject)), dec: true, enc: true, run: encryptDecrypt2},                         // EncryptDecrypt2
	}
}
