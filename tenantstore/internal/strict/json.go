// Package strict decodes JSON as stored and wire formats need it.
package strict

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
)

// Decode decodes one value with no unknown field and nothing behind it.
func Decode(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the JSON value")
	}
	return nil
}
