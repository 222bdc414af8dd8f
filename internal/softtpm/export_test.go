package softtpm

import (
	"crypto/rand"
	"time"
)

// FromState opens a TPM from the content of a state file.
func FromState(b []byte) (*TPM, error) {
	t := &TPM{cfg: Config{Rand: rand.Reader, Now: time.Now}}
	if err := t.restore(b); err != nil {
		return nil, err
	}
	t.forgetFactory()
	t.PowerOn()
	return t, nil
}
