package fscrypt

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/internal/tpm"
)

// TPM guards a secret by sealing it to a TPM, to boot states that the owner
// approved, and to the moment before the volume was opened in this boot.
// Everything secret travels in salted, encrypted sessions; the salt key is the
// storage root key whose name the slot pins.
type TPM struct {
	// Device is the TPM. Required.
	Device transport.TPM
	// Policies are the approved boot states: alternatives with one digest, for
	// example the signed policies of slot A and slot B. Required.
	Policies []BootPolicy
	// PIN is asked for in addition when the slot is made with one: 4 to 32
	// bytes without zero bytes. The TPM's dictionary attack protection guards
	// it. Empty means none.
	PIN []byte
	// ParentName is the TPM name of the storage root key as enrolment learnt
	// it. Empty means that the name in the header is all that is pinned, so
	// that who rewrites the disk and sits on the TPM's bus can pose as the TPM.
	ParentName []byte
	// Counter is the NV index of the counter that witnesses the volume's
	// generation, for example 0x01800110. Create needs it, unless
	// Config.UnsafeNoFreshness says otherwise; Open takes it from the header.
	Counter tpm2.TPMHandle
	// Share is the first of two NV indices, for example 0x01800130, one of
	// which holds one half of the secret. It is undefined when the slot is
	// replaced and by Destroy, so that copies of the old slot are worth
	// nothing. Zero means none.
	Share tpm2.TPMHandle
	// Revocation is the NV index of a counter, for example 0x01800118, that
	// the slot's policy is bound to. It is counted up when the slot is replaced
	// or removed and by Destroy, so that the TPM does not open copies of the
	// slot any more. Each slot needs its own. It takes less NV memory than
	// Share, which erases; Open needs it to finish what a power cut left. Zero
	// means none.
	Revocation tpm2.TPMHandle
	// UnsafeReplaceNV takes Counter, Share and Revocation over when they are in use, as a
	// Create that was cut off leaves them. If another volume has them, it is
	// lost.
	UnsafeReplaceNV bool
	// After lists the Latch values of volumes that are opened earlier in each
	// boot, in order.
	After [][]byte
	// LatchPCR is extended right after unsealing and after a refusal, so that
	// nothing that runs later can unseal again. Zero means 15.
	LatchPCR int
	// UnsafeNoLatch leaves the latch out: whoever gets to run on the node
	// later in the same boot can unseal.
	UnsafeNoLatch bool
	// Keep holds what the TPM unsealed in this boot, for a restart of the
	// process. What it holds opens the slot without the TPM and the PIN. Nil
	// means that the volume opens once in each boot.
	Keep *Keep
	// OwnerAuth is the owner hierarchy's auth value, needed where NV indices
	// are defined and undefined, and where no storage root key is persistent.
	OwnerAuth []byte
}

// tpmData is the TPM's slot.
type tpmData struct {
	Parent  string     `json:"parent"` // name of the storage root key, hex
	Public  []byte     `json:"public"` // TPMT_PUBLIC of the sealed object
	Private []byte     `json:"private"`
	PIN     bool       `json:"pin,omitempty"`
	Bank    string     `json:"bank"`
	Latch   int        `json:"latch"` // PCR, or -1
	After   []string   `json:"after,omitempty"`
	Share   *shareInfo `json:"share,omitempty"`

	Revocation *revocationInfo `json:"revocation,omitempty"`
}

// Limits of a slot.
const (
	maxAfter = 16
	noLatch  = -1
	minPIN   = 4
	maxPIN   = 32
)

// Type returns "tpm".
func (p *TPM) Type() string { return "tpm" }

func (p *TPM) latchPCR() (int, error) {
	pcr := p.LatchPCR
	if pcr == 0 {
		pcr = tpm.PCRLatch
	}
	if p.UnsafeNoLatch {
		return noLatch, nil
	}
	if pcr < 8 || pcr > 23 || tpm.Resettable(pcr) {
		return 0, fmt.Errorf("latch PCR %d: want one that only a reboot resets and firmware leaves alone, for example 15", pcr)
	}
	return pcr, nil
}

// do uses the device alone, with its pinned storage root key.
func (p *TPM) do(ctx context.Context, pins [][]byte, f func(t *tpm.Device, srk *tpm.Key) error) error {
	if p.Device == nil {
		return errors.New("TPM protector without a device")
	}
	return tpm.Wrap(p.Device).Do(ctx, func(t *tpm.Device) (err error) {
		srk, err := tpm.SRK(t, p.OwnerAuth)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		defer func() { err = errors.Join(err, srk.Flush()) }()
		for _, want := range pins {
			if err := srk.Pin(want); err != nil {
				return fmt.Errorf("%w: %w", ErrTPMChanged, err)
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return f(t, srk)
	})
}

func (p *TPM) pins() [][]byte {
	if len(p.ParentName) > 0 {
		return [][]byte{p.ParentName}
	}
	return nil
}

// Wrap implements Protector: it seals.
func (p *TPM) Wrap(ctx context.Context, secret *Secret, b Binding) (Slot, error) {
	digest, bank, err := checkPolicies(p.Policies)
	if err != nil {
		return Slot{}, err
	}
	if len(p.PIN) > 0 && (len(p.PIN) < minPIN || len(p.PIN) > maxPIN || bytes.IndexByte(p.PIN, 0) >= 0) {
		return Slot{}, fmt.Errorf("PIN must have %d to %d bytes, none of them zero", minPIN, maxPIN)
	}
	if len(p.After) > maxAfter {
		return Slot{}, fmt.Errorf("%d volumes before this one, limit %d", len(p.After), maxAfter)
	}
	pcr, err := p.latchPCR()
	if err != nil {
		return Slot{}, err
	}
	d := tpmData{PIN: len(p.PIN) > 0, Bank: bank.String(), Latch: pcr}
	for _, a := range p.After {
		d.After = append(d.After, hex.EncodeToString(a))
	}
	if _, err := p.clauses(&d, bank); err != nil {
		return Slot{}, err
	}
	err = p.do(ctx, p.pins(), func(t *tpm.Device, srk *tpm.Key) error {
		if p.Revocation != 0 {
			if d.Revocation, err = p.bindCounter(t, srk, b.notes); err != nil {
				return err
			}
		}
		clauses, err := p.clauses(&d, bank)
		if err != nil {
			return err
		}
		for _, c := range clauses {
			digest = c.extend(digest)
		}
		d.Parent = hex.EncodeToString(srk.Name.Buffer)
		sealed, err := secret.clone()
		if err != nil {
			return err
		}
		defer sealed.Erase()
		if p.Share != 0 {
			half := randomSecret()
			defer half.Erase()
			if err := sealed.xor(half); err != nil {
				return err
			}
			var used map[tpm2.TPMHandle]bool
			if b.notes != nil {
				used = b.notes.shares
			}
			index, err := p.shareIndex(t, srk, used)
			if err != nil {
				return err
			}
			if d.Share, err = writeShare(t, srk, index, p.OwnerAuth, sealed, half); err != nil {
				return err
			}
			if info := d.Share; b.notes != nil {
				b.notes.undos = append(b.notes.undos, func(ctx context.Context) error { return p.dropShare(ctx, info) })
			}
		}
		return p.seal(t, srk, sealed, digest, &d)
	})
	if err != nil {
		return Slot{}, err
	}
	p.noteLatch(ctx, b, pcr)
	if err := b.notes.note(p.Keep, b, &d, secret); err != nil {
		return Slot{}, err
	}
	return newSlot(b, p.Type(), d)
}

// noteLatch leaves the latch to whoever opens the volume, and closes it at
// once where nobody does.
func (p *TPM) noteLatch(ctx context.Context, b Binding, pcr int) func(digest []byte) error {
	if pcr == noLatch {
		return nil
	}
	latch := func(digest []byte) error {
		// Closing the latch is not given up with the caller's context.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), latchTimeout)
		defer cancel()
		return tpm.Wrap(p.Device).Do(ctx, func(t *tpm.Device) error { return extendLatch(t, pcr, digest) })
	}
	if b.notes != nil {
		b.notes.latches = append(b.notes.latches, latch)
		return nil
	}
	return latch
}

// latchTimeout bounds how long closing the latch waits for the TPM.
const latchTimeout = 30 * time.Second

func (p *TPM) seal(t *tpm.Device, srk *tpm.Key, secret *Secret, digest []byte, d *tpmData) error {
	return secret.Use(func(k []byte) error {
		rsp, err := tpm2.Create{
			ParentHandle: srk.Auth(nil),
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				UserAuth: tpm2.TPM2BAuth{Buffer: p.PIN},
				Data:     tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: k}),
			}},
			InPublic: tpm2.New2B(tpm2.TPMTPublic{
				Type:    tpm2.TPMAlgKeyedHash,
				NameAlg: tpm2.TPMAlgSHA256,
				ObjectAttributes: tpm2.TPMAObject{
					FixedTPM: true, FixedParent: true,
					NoDA: len(p.PIN) == 0, AdminWithPolicy: true,
				},
				AuthPolicy: tpm2.TPM2BDigest{Buffer: digest},
			}),
		}.Execute(t, srk.Session(tpm.EncryptIn()))
		if err != nil {
			return sessionError(fmt.Errorf("seal: %w", err))
		}
		pub, err := rsp.OutPublic.Contents()
		if err != nil {
			return err
		}
		d.Public, d.Private = tpm2.Marshal(*pub), rsp.OutPrivate.Buffer
		return nil
	})
}

// sessionError names a TPM that can't encrypt parameters.
func sessionError(err error) error {
	if errors.Is(err, tpm2.TPMRCSymmetric) || errors.Is(err, tpm2.TPMRCMode) {
		return fmt.Errorf("%w: %w", ErrNoSessionEncryption, err)
	}
	return err
}

// Unwrap implements Protector: it unseals. The latch is closed when Open ends,
// whether it succeeded or not.
func (p *TPM) Unwrap(ctx context.Context, s Slot, b Binding) (_ *Secret, err error) {
	var d tpmData
	if err := strictJSON(s.Data, &d); err != nil {
		return nil, fmt.Errorf("slot: %w: %w", ErrTampered, err)
	}
	_, bank, err := checkPolicies(p.Policies)
	if err != nil {
		return nil, err
	}
	parent, err := hex.DecodeString(d.Parent)
	if err != nil || len(parent) != 34 {
		return nil, fmt.Errorf("slot pins no TPM: %w", ErrTampered)
	}
	if s := p.Keep.find(b, &d); s != nil && b.notes != nil {
		b.notes.reused = true
		return s, nil
	}
	if d.PIN != (len(p.PIN) > 0) {
		return nil, fmt.Errorf("slot with PIN: %v, PIN given: %v: %w", d.PIN, len(p.PIN) > 0, ErrAuth)
	}
	pcr, err := p.latchPCR()
	if err != nil {
		return nil, err
	}
	if pcr != d.Latch || bank.String() != d.Bank {
		return nil, fmt.Errorf("slot has latch PCR %d in bank %.10q, the protector %d in %v: %w", d.Latch, d.Bank, pcr, bank, ErrNoSlot)
	}
	clauses, err := p.clauses(&d, bank)
	if err != nil {
		return nil, err
	}
	var out *Secret
	started := false
	err = p.do(ctx, append(p.pins(), parent), func(t *tpm.Device, srk *tpm.Key) (err error) {
		started = true
		out, err = p.unseal(t, srk, &d, clauses)
		if err == nil && d.Share != nil {
			err = readShare(t, srk, d.Share, out)
		}
		return err
	})
	// A TPM that was not asked, or that wants another PIN, may be asked again.
	if started && !errors.Is(err, ErrAuth) && !errors.Is(err, ErrLockout) {
		if latch := p.noteLatch(ctx, b, pcr); latch != nil {
			err = errors.Join(err, latch(refusedLatch[:]))
		}
	}
	if err == nil {
		err = b.notes.note(p.Keep, b, &d, out)
	}
	if err != nil {
		out.Erase()
		return nil, err
	}
	return out, nil
}

func (p *TPM) unseal(t *tpm.Device, srk *tpm.Key, d *tpmData, clauses []clause) (_ *Secret, err error) {
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](d.Public)
	if err != nil {
		return nil, fmt.Errorf("slot: %w: %w", ErrTampered, err)
	}
	policy, off, err := choose(t, p.Policies)
	if err != nil {
		return nil, err
	}
	object, err := tpm.Load(t, srk, nil, tpm2.TPM2BPrivate{Buffer: d.Private}, tpm2.New2B(*pub))
	if err != nil {
		return nil, fmt.Errorf("%w: sealed object: %w", ErrTampered, err)
	}
	defer func() { err = errors.Join(err, object.Flush()) }()
	opts := []tpm2.AuthOption{tpm.EncryptOut()}
	if d.PIN {
		opts = append(opts, tpm2.Auth(p.PIN))
	}
	sess, end, err := srk.PolicySession(t, opts...)
	if err != nil {
		return nil, sessionError(fmt.Errorf("start policy session: %w", err))
	}
	defer func() { err = errors.Join(err, end()) }()
	w := &watch{TPM: t}
	if err := policy.Satisfy(w, sess.Handle(), sess.NonceTPM()); err != nil {
		return nil, p.explain(t, off, clauses, w.asks(err))
	}
	for _, c := range clauses {
		if err := c.satisfy(t, sess.Handle()); err != nil {
			return nil, p.explain(t, off, clauses, err)
		}
	}
	rsp, err := tpm2.Unseal{ItemHandle: object.Auth(sess)}.Execute(t)
	if err != nil {
		return nil, p.explain(t, off, clauses, err)
	}
	return NewSecret(rsp.OutData.Buffer)
}
