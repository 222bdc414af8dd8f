package atecc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"github.com/trusttree/trusttree/moduleid"
)

// SchemeInternal is the scheme of a signature over a message that the chip
// itself composed.
const SchemeInternal = "atecc.internal.v1"

// Internal-sign messages are made of fixed parts; these are the modes used.
const (
	modeGenKeyDigest = 0x08 // public key's digest into TempKey
	modeSignInternal = 0x40 // with the whole serial number
)

// IndexSerial is the index of the chip's serial number among the measurements
// of an internal-sign proof: signed, unlike the one that can be read.
const IndexSerial = 0x300

// InternalScheme returns the scheme of Config.Strict: the chip mixes the
// challenge's digest with a random number of its own, then with its public
// key, and signs that together with its serial number and the slot's
// configuration. A key that may only sign such messages signs nothing for
// anybody else, whatever the host asks. That holds for keys whose certificate
// or registration says that they are such keys: certify them under a CA, or a
// class, of their own.
func InternalScheme() moduleid.Scheme { return internalScheme{} }

type internalScheme struct{}

func (internalScheme) Name() string { return SchemeInternal }

// internalMessage is what the verifier must know to compose the chip's message
// again.
type internalMessage struct {
	random     [32]byte // the chip's own
	serial     [9]byte
	slot       byte
	slotConfig uint16
	keyConfig  uint16
	unlocked   byte // 1 while the slot is not locked by itself
}

const internalSize = 32 + 9 + 1 + 2 + 2 + 1

func (m internalMessage) encode() []byte {
	p := append(append(append([]byte(nil), m.random[:]...), m.serial[:]...), m.slot)
	p = binary.LittleEndian.AppendUint16(p, m.slotConfig)
	p = binary.LittleEndian.AppendUint16(p, m.keyConfig)
	return append(p, m.unlocked)
}

func decodeInternal(p []byte) (m internalMessage, err error) {
	if len(p) != internalSize {
		return m, errors.New("the message of an internal-sign proof has the wrong size")
	}
	copy(m.random[:], p)
	copy(m.serial[:], p[32:])
	m.slot = p[41]
	m.slotConfig, m.keyConfig = binary.LittleEndian.Uint16(p[42:]), binary.LittleEndian.Uint16(p[44:])
	m.unlocked = p[46]
	if m.slot > 15 || m.unlocked > 1 {
		return m, errors.New("the message of an internal-sign proof names an impossible slot")
	}
	return m, nil
}

// digest composes what the chip signs (data sheet: Nonce, GenKey with a public
// key digest, Sign internal).
func (m internalMessage) digest(challenge [32]byte, pub *ecdsa.PublicKey) ([32]byte, error) {
	point, err := pub.Bytes()
	if err != nil {
		return [32]byte{}, err
	}
	h := sha256.New()
	h.Write(m.random[:])
	h.Write(challenge[:20])
	h.Write([]byte{opNonce, 0, 0})
	temp := h.Sum(nil)
	h.Reset()
	h.Write(temp)
	h.Write([]byte{opGenKey, modeGenKeyDigest, m.slot, 0, m.serial[8], m.serial[0], m.serial[1]})
	h.Write(make([]byte, 25))
	h.Write(point[1:])
	p := make([]byte, 55)
	h.Sum(p[:0])
	p[32], p[33], p[34] = opSign, modeSignInternal, m.slot
	binary.LittleEndian.PutUint16(p[36:], m.slotConfig)
	binary.LittleEndian.PutUint16(p[38:], m.keyConfig)
	p[40] = m.slot | 1<<6 // TempKey: its key, made by GenKey, from a random nonce
	p[43] = m.serial[8]
	copy(p[44:], m.serial[4:8])
	copy(p[48:], m.serial[0:2])
	copy(p[50:], m.serial[2:4])
	p[52] = m.unlocked
	return sha256.Sum256(p), nil
}

// Check implements moduleid.Scheme.
func (internalScheme) Check(c moduleid.Challenge, e *moduleid.Evidence) (*moduleid.Proof, error) {
	certs, err := e.Certificates()
	if err != nil {
		return nil, malformed(err)
	}
	m, err := decodeInternal(e.Message)
	if err != nil {
		return nil, malformed(err)
	}
	if len(e.Signature) != 64 {
		return nil, malformed(errors.New("the proof is not a signature of 64 bytes"))
	}
	k, ok := certs[0].PublicKey.(*ecdsa.PublicKey)
	if !ok || k.Curve != elliptic.P256() {
		return nil, malformed(errors.New("the certificate is not for a P-256 key"))
	}
	digest, err := m.digest(c.Digest(), k)
	if err != nil {
		return nil, malformed(err)
	}
	if err := verify(k, digest[:], e.Signature); err != nil {
		return nil, err
	}
	if m.slotConfig&1 != 0 || m.slotConfig&2 == 0 {
		return nil, errors.New("the key also signs digests of the host: its internal messages prove nothing")
	}
	return &moduleid.Proof{Chain: certs, Measurements: []moduleid.Measurement{{Index: IndexSerial, Kind: "serial", Value: m.serial[:]}}}, nil
}

// internal makes a strict proof: what was signed, and the signature.
func (c *Chip) internal(ctx context.Context, d *Device, digest [32]byte) (message, sig []byte, err error) {
	slot := c.cfg.Slot
	m := internalMessage{serial: d.Serial, slot: byte(slot), slotConfig: d.Config.SlotConfig(slot), keyConfig: d.Config.KeyConfig(slot)}
	if d.Config[88+slot/8]&(1<<(slot%8)) != 0 {
		m.unlocked = 1
	}
	err = c.awake(ctx, func() error {
		random, err := c.run(ctx, randomNonce(digest[:20]))
		if err != nil {
			return err
		}
		m.random = [32]byte(random)
		if _, err := c.run(ctx, publicDigest(slot)); err != nil {
			return err
		}
		sig, err = c.run(ctx, signInternal(slot))
		return err
	})
	return m.encode(), sig, err
}
