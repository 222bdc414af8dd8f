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

// level is an object or array that is open.
type level struct {
	object bool
	key    bool // a key comes next
	keys   map[string]struct{}
}

// checkKeys refuses what encoding/json takes: an object that has a key twice,
// and keys in another case than the one declared. All our fields are lower
// case, so a key in any other character, or with an escape, is unknown.
//
// It looks at braces and strings alone, and so goes over a long text in base64
// at once; what is no JSON the decoder refuses afterwards. Where the text is
// JSON both see the same keys.
func checkKeys(data []byte) error {
	var stack []level
	tokens, scalar := 0, false // scalar: inside a number, true, false or null
	for i := 0; i < len(data); i++ {
		c := data[i]
		switch c {
		case ' ', '\t', '\r', '\n', ',', ':':
			scalar = false
		case '{', '[', '}', ']', '"':
			tokens, scalar = tokens+1, false
		default:
			if !scalar {
				tokens, scalar = tokens+1, true
			}
		}
		if tokens > maxTokens {
			return fmt.Errorf("more than %d fields and values", maxTokens)
		}
		switch c {
		case ' ', '\t', '\r', '\n':
		case '{', '[':
			if len(stack) == maxDepth {
				return fmt.Errorf("nested deeper than %d", maxDepth)
			}
			stack = append(stack, level{object: c == '{', key: c == '{'})
		case '}', ']':
			if len(stack) == 0 {
				return errors.New("not an object")
			}
			if stack = stack[:len(stack)-1]; len(stack) == 0 {
				if len(bytes.Trim(data[i+1:], " \t\r\n")) > 0 {
					return errors.New("data after the end")
				}
				return nil
			}
		default:
			if len(stack) == 0 {
				return errors.New("not an object")
			}
			switch top := &stack[len(stack)-1]; c {
			case ',':
				top.key = top.object
			case '"':
				end := stringEnd(data, i+1)
				if end < 0 {
					return io.ErrUnexpectedEOF
				}
				if top.key {
					if err := top.add(data[i+1 : end]); err != nil {
						return err
					}
				}
				i = end
			}
		}
	}
	return io.ErrUnexpectedEOF
}

// stringEnd returns where the quote is that ends a string.
func stringEnd(data []byte, from int) int {
	for at := from; ; {
		i := bytes.IndexByte(data[at:], '"')
		if i < 0 {
			return -1
		}
		end := at + i
		escapes := 0
		for end-escapes > from && data[end-escapes-1] == '\\' {
			escapes++
		}
		if escapes%2 == 0 {
			return end
		}
		at = end + 1
	}
}

func (l *level) add(key []byte) error {
	for _, r := range key {
		if r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			return fmt.Errorf("unknown field %q", key)
		}
	}
	if _, ok := l.keys[string(key)]; ok {
		return fmt.Errorf("field %q is there twice", key)
	}
	if l.keys == nil {
		l.keys = make(map[string]struct{})
	}
	l.keys[string(key)] = struct{}{}
	l.key = false
	return nil
}
