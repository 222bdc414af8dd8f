// Package lint refuses JSON that decoders disagree about or stumble over,
// before any decoder sees it: nulls, duplicate keys, deep nesting, numbers that
// are not exact integers, invalid UTF-8, a byte order mark, trailing data.
package lint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"unicode/utf8"
)

const (
	// MaxDepth is how deep objects and arrays may nest.
	MaxDepth = 24
	// MaxInteger is the largest magnitude of a number: integers above 2^53
	// are read differently by different implementations.
	MaxInteger = 1 << 53
)

// ErrInvalid is the class of all errors of this package.
var ErrInvalid = errors.New("not strict JSON")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// Check returns an error unless data is one JSON value that every decoder
// reads alike. Below a member called "custom" null and fractions are let
// through: TUF leaves its content to applications.
func Check(data []byte) error {
	if !utf8.Valid(data) {
		return invalid("invalid UTF-8")
	}
	if bytes.HasPrefix(data, []byte("\xef\xbb\xbf")) {
		return invalid("starts with a byte order mark")
	}
	if err := depth(data); err != nil {
		return err
	}
	if !json.Valid(data) {
		return invalid("syntax error or trailing data")
	}
	w := walker{data: data}
	return w.value(false)
}

// depth bounds nesting before anything recurses.
func depth(data []byte) error {
	level, inString := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			if level++; level > MaxDepth {
				return invalid("nested deeper than %d", MaxDepth)
			}
		case c == '}' || c == ']':
			level--
		}
	}
	return nil
}

// walker walks data that json.Valid accepted, so that it need not check syntax.
type walker struct {
	data []byte
	pos  int
}

func (w *walker) space() byte {
	for {
		switch c := w.data[w.pos]; c {
		case ' ', '\t', '\n', '\r':
			w.pos++
		default:
			return c
		}
	}
}

func (w *walker) value(custom bool) error {
	switch c := w.space(); c {
	case '{':
		return w.object(custom)
	case '[':
		w.pos++
		for w.space() != ']' {
			if err := w.value(custom); err != nil {
				return err
			}
			if w.space() == ',' {
				w.pos++
			}
		}
		w.pos++
	case '"':
		_, err := w.text()
		return err
	case 'n':
		if !custom {
			return invalid("null at byte %d", w.pos)
		}
		w.pos += 4
	case 't':
		w.pos += 4
	case 'f':
		w.pos += 5
	default:
		return w.number(custom)
	}
	return nil
}

func (w *walker) object(custom bool) error {
	w.pos++
	seen := map[string]struct{}{}
	for w.space() != '}' {
		at := w.pos
		key, err := w.text()
		if err != nil {
			return err
		}
		if _, dup := seen[key]; dup {
			return invalid("key %.60q twice at byte %d", key, at)
		}
		seen[key] = struct{}{}
		w.space()
		w.pos++ // colon
		if err := w.value(custom || key == "custom"); err != nil {
			return err
		}
		if w.space() == ',' {
			w.pos++
		}
	}
	w.pos++
	return nil
}

func (w *walker) text() (string, error) {
	start, escaped := w.pos, false
	for w.pos++; w.data[w.pos] != '"'; w.pos++ {
		if w.data[w.pos] == '\\' {
			escaped = true
			w.pos++
		}
	}
	w.pos++
	raw := w.data[start:w.pos]
	if !escaped {
		return string(raw[1 : len(raw)-1]), nil
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", invalid("string at byte %d", start)
	}
	return s, nil
}

func (w *walker) number(custom bool) error {
	start := w.pos
	for w.pos < len(w.data) && bytes.IndexByte([]byte("+-.0123456789eE"), w.data[w.pos]) >= 0 {
		w.pos++
	}
	raw := string(w.data[start:w.pos])
	if len(raw) > 32 {
		return invalid("number of %d digits at byte %d", len(raw), start)
	}
	n, err := strconv.ParseInt(raw, 10, 64)
	if err != nil && custom {
		return nil
	}
	if err != nil || n > MaxInteger || n < -MaxInteger {
		return invalid("number %s at byte %d is not an exact integer", raw, start)
	}
	return nil
}

// Strict decodes data into v after Check, refusing members that v does not
// know by exactly that name. limit bounds len(data).
func Strict(data []byte, limit int, v any) error {
	if len(data) > limit {
		return invalid("%d bytes, limit %d", len(data), limit)
	}
	if err := Check(data); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return exact(reflect.TypeOf(v), data)
}
