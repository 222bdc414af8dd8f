// Package strict decodes JSON that was not written by a friend.
package strict

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Limits bound what is decoded.
type Limits struct {
	Bytes   int
	Members int // of each array and object: what one takes in memory is many times its bytes; 0: as many as there are
}

// Decode decodes one JSON value within limits, refusing unknown fields, a key
// that is there twice, in whatever case, trailing data, and versions other than
// current and the one before it.
func Decode(data []byte, limit Limits, current int, v any) error {
	if len(data) > limit.Bytes {
		return fmt.Errorf("%d bytes; the limit is %d", len(data), limit.Bytes)
	}
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return err
	}
	if head.Version < max(1, current-1) || head.Version > current {
		return fmt.Errorf("version %d; this reader knows version %d and the one before: update it, or write that version", head.Version, current)
	}
	if err := uniqueKeys(data, limit.Members); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the JSON value")
	}
	return nil
}

const maxDepth = 32

// uniqueKeys refuses objects that name a key twice: readers differ in which
// one they believe. It refuses arrays and objects of more than most members.
func uniqueKeys(data []byte, most int) error {
	d := json.NewDecoder(bytes.NewReader(data))
	type level struct {
		keys map[string]bool // nil in an array
		key  bool            // the next token of an object is a key
		n    int             // values so far
	}
	var stack []level
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		top := len(stack) - 1
		if s, ok := t.(string); ok && top >= 0 && stack[top].keys != nil && stack[top].key {
			if stack[top].keys[strings.ToLower(s)] {
				return fmt.Errorf("the key %.80q is there twice", s)
			}
			stack[top].keys[strings.ToLower(s)], stack[top].key = true, false
			continue
		}
		switch t {
		case json.Delim('{'):
			stack = append(stack, level{keys: map[string]bool{}, key: true})
		case json.Delim('['):
			stack = append(stack, level{})
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:top]
			fallthrough
		default:
			if n := len(stack); n > 0 {
				stack[n-1].key = true
				if stack[n-1].n++; most > 0 && stack[n-1].n > most {
					return fmt.Errorf("an array or object of more than %d members", most)
				}
			}
		}
		if len(stack) > maxDepth {
			return fmt.Errorf("nested deeper than %d", maxDepth)
		}
	}
}
