package fscrypt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"filippo.io/age"
)

// Recovery guards a secret with age recipients: any one of their identities
// opens the slot, with this package or with the stock age tool. Nodes hold the
// recipients only. Make one with age.GenerateHybridIdentity and keep it off
// the node.
type Recovery struct {
	// Recipients are who may recover. Required by Create, AddProtector and
	// Rotate.
	Recipients []age.Recipient
	// Identities open the slot. Required by Open.
	Identities []age.Identity
	// InsecureClassicRecipients admits recipients that a quantum computer of
	// the future opens, for example X25519 or hardware tokens. Who records the
	// header today could then decrypt the disk.
	InsecureClassicRecipients bool
}

// Type returns "recovery".
func (r *Recovery) Type() string { return "recovery" }

type ageData struct {
	Age []byte `json:"age"` // a whole age file
}

// Wrap implements Protector.
func (r *Recovery) Wrap(_ context.Context, secret *Secret, b Binding) (Slot, error) {
	if !r.InsecureClassicRecipients {
		for _, rec := range r.Recipients {
			if !postQuantum(rec) {
				return Slot{}, fmt.Errorf("recovery recipient %v is not post-quantum: use age.GenerateHybridIdentity, or set InsecureClassicRecipients", rec)
			}
		}
	}
	return wrapAge(secret, b, r.Type(), r.Recipients...)
}

// postQuantum asks a recipient for its labels by wrapping a throw-away key.
func postQuantum(r age.Recipient) bool {
	l, ok := r.(age.RecipientWithLabels)
	if !ok {
		return false
	}
	_, labels, err := l.WrapWithLabels(make([]byte, 16))
	return err == nil && slices.Contains(labels, "postquantum")
}

// Unwrap implements Protector.
func (r *Recovery) Unwrap(_ context.Context, s Slot, _ Binding) (*Secret, error) {
	return unwrapAge(s, r.Identities...)
}

// Work factors of scrypt, as powers of two. Memory is 1 KiB times N.
const (
	defaultWorkFactor = 17 // 128 MiB
	maxWorkFactor     = 20 // 1 GiB
)

// Passphrase guards a secret with what somebody remembers.
type Passphrase struct {
	// Passphrase is required. It stays in the process's memory as long as Go
	// keeps the string.
	Passphrase string
	// WorkFactor is the binary logarithm of scrypt's N. Zero means 17, which
	// takes 128 MiB; 20 is the most.
	WorkFactor int
}

// Type returns "passphrase".
func (p *Passphrase) Type() string { return "passphrase" }

// Wrap implements Protector.
func (p *Passphrase) Wrap(_ context.Context, secret *Secret, b Binding) (Slot, error) {
	r, err := age.NewScryptRecipient(p.Passphrase)
	if err != nil {
		return Slot{}, err
	}
	n := p.WorkFactor
	if n == 0 {
		n = defaultWorkFactor
	}
	if n < 1 || n > maxWorkFactor {
		return Slot{}, fmt.Errorf("work factor %d, want 1 to %d", n, maxWorkFactor)
	}
	r.SetWorkFactor(n)
	return wrapAge(secret, b, p.Type(), r)
}

// Unwrap implements Protector.
func (p *Passphrase) Unwrap(_ context.Context, s Slot, _ Binding) (*Secret, error) {
	id, err := age.NewScryptIdentity(p.Passphrase)
	if err != nil {
		return nil, err
	}
	id.SetMaxWorkFactor(maxWorkFactor)
	return unwrapAge(s, id)
}

func wrapAge(secret *Secret, b Binding, typ string, rs ...age.Recipient) (Slot, error) {
	var buf bytes.Buffer
	w, err := age.Encrypt(&buf, rs...)
	if err != nil {
		return Slot{}, err
	}
	err = secret.Use(func(k []byte) error {
		_, err := w.Write(k)
		return err
	})
	if err = errors.Join(err, w.Close()); err != nil {
		return Slot{}, err
	}
	return newSlot(b, typ, ageData{buf.Bytes()})
}

func unwrapAge(s Slot, ids ...age.Identity) (*Secret, error) {
	var d ageData
	if err := strictJSON(s.Data, &d); err != nil {
		return nil, fmt.Errorf("slot: %w: %w", ErrTampered, err)
	}
	if _, err := age.ExtractHeader(bytes.NewReader(d.Age)); err != nil {
		return nil, fmt.Errorf("slot: %w: %w", ErrTampered, err)
	}
	r, err := age.Decrypt(bytes.NewReader(d.Age), ids...)
	var none *age.NoIdentityMatchError
	if errors.As(err, &none) {
		return nil, fmt.Errorf("%w: %w", ErrAuth, err)
	}
	if err != nil && !slices.ContainsFunc(ids, foreign) {
		err = fmt.Errorf("slot: %w: %w", ErrTampered, err)
	}
	if err != nil {
		return nil, err
	}
	b := make([]byte, secretSize+1)
	n, err := io.ReadFull(r, b)
	defer clear(b)
	if n != secretSize || !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("slot does not hold a secret of %d bytes: %w", secretSize, ErrTampered)
	}
	return NewSecret(b[:n])
}

// foreign reports whether an identity may fail for reasons of its own.
func foreign(id age.Identity) bool {
	switch id.(type) {
	case *age.X25519Identity, *age.HybridIdentity, *age.ScryptIdentity:
		return false
	}
	return true
}
