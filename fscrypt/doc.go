// Package fscrypt is storage that opens on this node, in this boot state, and
// nowhere else.
//
// Start with [Create], which makes a volume in an empty directory, and [Open].
// A random volume key encrypts everything. Each [Protector] given to Create
// becomes a slot that holds this key; any one slot opens the volume:
//
//   - [TPM] seals to a TPM and to boot states that the owner approved through
//     a [BootPolicy], which package secureboot provides.
//   - [Remote] is a share that the owner's cloud releases for a lease (package
//     release is the cloud's side).
//   - [All] needs every one of its parts, for example TPM and Remote.
//   - [Recovery] is for the owner's keys, kept off the node: age recipients,
//     post-quantum by default. The stock age tool opens this slot too.
//   - [Passphrase] is for people.
//
// # What is stored
//
// Below the volume's directory, .fscrypt holds two copies of the header
// (strict JSON, authenticated under the volume key), the manifest (an
// encrypted log of names and versions) and the objects. Each object is an age
// v1 file whose only stanza is bound to the volume and to the object's random
// id; nothing is ever written in place. A write is acknowledged when it is
// durable; a power cut at any step leaves the old content or the new one,
// whichever of the sectors not yet flushed, of 512 bytes or more, reached the
// disk. On a full disk writes fail with syscall.ENOSPC and change nothing, and
// files can be removed.
//
// # In the TPM
//
// The caller chooses every NV index. Those that this module's examples use, and
// that its other packages keep clear of:
//
//	0x01800110              counter of the generation, system volume
//	0x01800111              counter of the generation, data volume
//	0x01800112–0x01800117   the same, further volumes (TPM.Counter)
//	0x01800118–0x0180011F   counters that revoke copies of slots (TPM.Revocation)
//	0x01800130–0x0180013F   halves of secrets, two for each slot (TPM.Share)
//
// The fleet's policy floor, 0x01800120, belongs to the boot policy. PCR 15 is
// the latch.
//
// # What it defends against
//
// Who has the disk alone reads nothing: not contents, not names. Who boots
// another system on the node gets a *[PolicyError]. Who gets to run after the
// volume was opened can't unseal again in that boot: a latch PCR is extended
// after success and after refusal. A program that must survive its own restart
// without a reboot hands a [Keep] to the service manager; a kernel mode volume
// goes on being usable meanwhile ([Volume.Detach]). Who puts a volume of his
// own, sealed to the same TPM, in the place of the node's is found out by
// Config.Latch. What the TPM releases travels only in
// salted, encrypted sessions to the storage root key that the slot pins, so a
// probe on the bus learns nothing. Changed, swapped, truncated or repeated
// data is [ErrTampered]; a disk put back to an earlier checkpoint is
// [ErrRollback], because a counter in the TPM witnessed a later one.
//
// # What it does not
//
// It does not hide how many files there are, nor their sizes and times of
// writing. Changes after the last [Volume.Checkpoint] can be dropped unnoticed
// by who holds the disk. Who controls the node while the volume is open reads
// the volume. Flash memory keeps overwritten
// blocks, and a copy of an old slot opens with what opened it; a TPM slot with
// TPM.Share is worth nothing from the moment it is replaced, and one with
// TPM.Revocation is refused by the TPM. Kernel mode authenticates the files
// given to [Volume.Protect] and no others, and [Volume.Rotate] has to copy its
// directory, which takes as much space again and nobody else using it.
//
// Keys live in locked memory, but Go copies what passes through its stacks and
// heap: without GOEXPERIMENT=runtimesecret some four copies of a key stay
// behind after each sealing and unsealing (the memory scan of the tests counts
// them), with it none. While the volume is open, ciphers keep expanded keys on
// the heap either way.
package fscrypt
