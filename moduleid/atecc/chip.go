package atecc

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

	"github.com/trusttree/trusttree/moduleid"
)

// DefaultAddress is the 7-bit address of a chip that was never configured
// otherwise. Trust&GO parts have 0x35, TrustFLEX parts 0x36.
const DefaultAddress = 0x60

// Config describes one chip.
type Config struct {
	// Address is the 7-bit I2C address, 0x08 to 0x77. Zero means
	// DefaultAddress.
	Address uint8

	// Slot holds the private key, 0 to 15.
	Slot int

	// Strict proves with a message that the chip composes, for keys that may
	// sign nothing else (TrustFLEX: slot 1). The verifier then lists
	// InternalScheme instead of Scheme.
	Strict bool

	// Certificates finds the chip's chain. Nil means StoredChain(8).
	Certificates CertSource

	// MinRevision is the oldest generation that is accepted. Zero means
	// ATECC608A. A chip claims its revision without proof: what an owner must
	// rely on belongs into the registry (moduleid.Class.Models).
	MinRevision Revision
}

// Chip is one secure element. It implements moduleid.Chip.
type Chip struct {
	host *Host
	cfg  Config

	busy chan struct{} // holds a token while the chip is used, by any handle

	mu     sync.Mutex
	closed bool
	device *Device  // after the provisioning check
	chain  [][]byte // after the certificates were read
}

// Chip returns the chip at an address. Nothing is sent before the first proof.
func (h *Host) Chip(cfg Config) (*Chip, error) {
	if cfg.Address == 0 {
		cfg.Address = DefaultAddress
	}
	if cfg.Address < 0x08 || cfg.Address > 0x77 {
		return nil, fmt.Errorf("atecc: %#02x is no 7-bit address between 0x08 and 0x77; Microchip prints addresses shifted left, so that %#02x would be %#02x here", cfg.Address, cfg.Address, cfg.Address>>1)
	}
	if cfg.Slot < 0 || cfg.Slot > 15 {
		return nil, fmt.Errorf("atecc: there is no slot %d; slots are 0 to 15", cfg.Slot)
	}
	if cfg.Certificates == nil {
		cfg.Certificates = StoredChain(8)
	}
	if cfg.MinRevision == 0 {
		cfg.MinRevision = ATECC608A
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.busy[cfg.Address] == nil {
		h.busy[cfg.Address], h.awake[cfg.Address] = make(chan struct{}, 1), false
	}
	return &Chip{host: h, cfg: cfg, busy: h.busy[cfg.Address]}, nil
}

// Close forgets the chip. It sends nothing: every proof leaves it asleep.
func (c *Chip) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return nil
}

// Prove makes the chip sign the challenge's digest. The first proof also
// checks how the chip was provisioned and reads its certificates; a chip that
// is not locked, or whose key does not match its certificate, is refused by
// an error that is moduleid.ErrRefused.
func (c *Chip) Prove(ctx context.Context, ch moduleid.Challenge) (*moduleid.Evidence, error) {
	if err := ch.Validate(); err != nil {
		return nil, err
	}
	select {
	case c.busy <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-c.busy }()
	c.mu.Lock()
	device, chain, closed := c.device, c.chain, c.closed
	c.mu.Unlock()
	if closed {
		return nil, fmt.Errorf("atecc: the chip was closed: %w", moduleid.ErrAbsent)
	}
	if device == nil {
		var err error
		if device, chain, err = c.identify(ctx, ch); err != nil {
			return nil, unwilling(ch, err)
		}
		c.mu.Lock()
		c.device, c.chain = device, chain
		c.mu.Unlock()
	}
	if c.cfg.Strict {
		message, sig, err := c.internal(ctx, device, ch.Digest())
		if err != nil {
			return nil, unwilling(ch, err)
		}
		return &moduleid.Evidence{Scheme: SchemeInternal, Chain: chain, Message: message, Signature: sig}, nil
	}
	sig, err := c.external(ctx, device, ch.Digest())
	if err != nil {
		return nil, unwilling(ch, err)
	}
	return &moduleid.Evidence{Scheme: SchemeExternal, Chain: chain, Signature: sig}, nil
}

// unwilling turns a status that the chip answered, after all tries, into a
// refusal: it is there, and does not prove itself. A status about the bus is
// none: nobody knows what the chip would have said.
func unwilling(ch moduleid.Challenge, err error) error {
	var status *StatusError
	if !errors.As(err, &status) || errors.Is(err, errLost) || status.Status == statusComm || errors.Is(err, moduleid.ErrRefused) {
		return err
	}
	return &moduleid.RefusedError{Node: ch.Node, Connector: ch.Connector, Findings: []moduleid.Finding{{Reason: moduleid.ReasonProof, Detail: err.Error()}}}
}

// external signs a digest. The vendor's sequence: stir the random number
// generator, load the digest, sign it.
func (c *Chip) external(ctx context.Context, d *Device, digest [32]byte) (sig []byte, err error) {
	target, source := byte(0x40), byte(0x20)
	if d.Revision < ATECC608A {
		target, source = 0, 0 // the 508A has no message digest buffer
	}
	err = c.awake(ctx, func() error {
		if _, err := c.run(ctx, random()); err != nil {
			return err
		}
		if _, err := c.run(ctx, load(target, digest)); err != nil {
			return err
		}
		sig, err = c.run(ctx, sign(source, c.cfg.Slot))
		return err
	})
	return sig, err
}

// awake runs f with the chip awake, in one window of its watchdog, and starts
// over when the chip lost its state on the way.
func (c *Chip) awake(ctx context.Context, f func() error) (err error) {
	h := c.host
	if err := h.acquire(ctx); err != nil {
		return fmt.Errorf("atecc: %w", err)
	}
	defer func() { err = errors.Join(err, h.release(ctx)) }()
	for try := 0; ; try++ {
		err = h.wake(ctx, c.cfg.Address)
		if err == nil {
			err = f()
			h.sleep(ctx, c.cfg.Address)
		}
		var status *StatusError
		again := errors.Is(err, errLost) || errors.As(err, &status) && status.Status == statusECCFault
		if !again || try >= 2 || ctx.Err() != nil {
			break
		}
	}
	if err == nil {
		return nil
	}
	if errors.Is(err, ErrNACK) && !errors.Is(err, errLost) {
		err = errors.Join(err, moduleid.ErrAbsent)
	}
	return fmt.Errorf("atecc: %w", err)
}

func (c *Chip) run(ctx context.Context, cmd command) ([]byte, error) {
	return c.host.run(ctx, c.cfg.Address, cmd)
}

// identify reads the configuration, checks it, and finds the chain.
func (c *Chip) identify(ctx context.Context, ch moduleid.Challenge) (*Device, [][]byte, error) {
	d := &Device{chip: c}
	refuse := func(reason moduleid.Reason, err error) error {
		r := &moduleid.RefusedError{Node: ch.Node, Connector: ch.Connector, Read: bytes.Clone(d.Config[:]), Findings: []moduleid.Finding{{Reason: reason, Detail: err.Error()}}}
		if d.PublicKey != nil {
			if spki, err := x509.MarshalPKIXPublicKey(d.PublicKey); err == nil {
				sum := sha256.Sum256(spki)
				r.ID = hex.EncodeToString(sum[:])
			}
		}
		return r
	}
	var rnd []byte
	err := c.awake(ctx, func() (err error) {
		if rnd, err = c.run(ctx, random()); err != nil {
			return err
		}
		for block := range 4 {
			data, err := c.run(ctx, read32(zoneConfig, 0, block))
			if err != nil {
				return err
			}
			copy(d.Config[block*32:], data)
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	d.Serial = d.Config.Serial()
	d.Revision = d.Config.Revision()
	if d.Revision < c.cfg.MinRevision {
		return nil, nil, refuse(moduleid.ReasonModel, fmt.Errorf("the chip is an %s; at least %s is asked for", d.Revision, c.cfg.MinRevision))
	}
	if err := d.Config.check(c.cfg.Slot, c.cfg.Strict); err != nil {
		return nil, nil, refuse(moduleid.ReasonModel, err)
	}
	if unlockedRandom(rnd) {
		return nil, nil, refuse(moduleid.ReasonModel, errors.New("the chip answers the fixed pattern of an unlocked part instead of random numbers"))
	}
	var pub []byte
	if err := c.awake(ctx, func() (err error) {
		pub, err = c.run(ctx, public(c.cfg.Slot))
		return err
	}); err != nil {
		return nil, nil, err
	}
	if d.PublicKey, err = ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, pub...)); err != nil {
		return nil, nil, refuse(moduleid.ReasonMalformed, fmt.Errorf("its public key: %w", err))
	}
	chain, err := c.cfg.Certificates(ctx, d)
	if err != nil {
		if errors.Is(err, ErrNoCertificate) {
			return nil, nil, refuse(moduleid.ReasonCertificate, err)
		}
		return nil, nil, err
	}
	if len(chain) == 0 {
		return nil, nil, refuse(moduleid.ReasonCertificate, ErrNoCertificate)
	}
	// A cloned certificate shows here already; the signature proves it anyway.
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, nil, refuse(moduleid.ReasonMalformed, fmt.Errorf("its certificate: %w", err))
	}
	if !d.PublicKey.Equal(leaf.PublicKey) {
		return nil, nil, refuse(moduleid.ReasonProof, errors.New("its certificate is for another key than the one in its slot: a copied certificate"))
	}
	return d, chain, nil
}
