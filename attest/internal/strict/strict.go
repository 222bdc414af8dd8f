// Package strict decodes JSON the way stored and wire formats are read here:
// nothing unknown, nothing twice, nothing behind the end.
package strict

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Bounds of a message beside its size: what it takes in memory is a multiple of
// what it has in elements.
const (
	maxDepth  = 8    // nesting
	maxTokens = 4096 // fields, values, and brackets
)

// Decode decodes one JSON document: unknown and repeated fields, fields
// in another case, deep nesting, more than 4096 fields, values and brackets, and
// trailing data are errors.
func Decode(data []byte, v any) error {
	if err := checkKeys(data); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	return dec.Decode(v)
}

// checkKeys refuses what encoding/json takes: an object that has a key twice,
// and keys in another case than the one declared. All our fields are lower
// case, so a key in any other character is unknown.
func checkKeys(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	type level struct {
		keys map[string]bool // nil in an array
		key  bool            // a key comes next
	}
	var stack []level
	for n := 0; ; n++ {
		if n == maxTokens {
			return fmt.Errorf("more than %d fields and values", maxTokens)
		}
		tok, err := dec.Token()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return io.ErrUnexpectedEOF
			}
			return err
		}
		if d, ok := tok.(json.Delim); ok && (d == '{' || d == '[') {
			if len(stack) == maxDepth {
				return fmt.Errorf("nested deeper than %d", maxDepth)
			}
			l := level{}
			if d == '{' {
				l = level{keys: map[string]bool{}, key: true}
			}
			stack = append(stack, l)
			continue
		}
		if len(stack) == 0 {
			return errors.New("not an object")
		}
		top := &stack[len(stack)-1]
		if d, ok := tok.(json.Delim); ok && (d == '}' || d == ']') {
			stack = stack[:len(stack)-1]
			if len(stack) == 0 {
				break
			}
			top = &stack[len(stack)-1]
		} else if top.key {
			k := tok.(string)
			for _, r := range k {
				if r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9') {
					return fmt.Errorf("unknown field %q", k)
				}
			}
			if top.keys[k] {
				return fmt.Errorf("field %q is there twice", k)
			}
			top.keys[k] = true
			top.key = false
			continue
		}
		top.key = top.keys != nil
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the end")
	}
	return nil
}
