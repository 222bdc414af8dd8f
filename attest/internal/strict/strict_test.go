package strict

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

type message struct {
	Version int               `json:"version"`
	Data    []byte            `json:"data"`
	Text    string            `json:"text"`
	Parts   []part            `json:"parts"`
	Any     map[string]string `json:"any"`
}

type part struct {
	Name string `json:"name"`
}

func TestDecode(t *testing.T) {
	for name, c := range map[string]struct {
		in, err string
	}{
		"good":                     {`{"version":1,"text":"a\\\"{}[],:","parts":[{"name":"a"},{"name":"b"}]}` + "\n", ""},
		"repeated":                 {`{"version":1,"version":2}`, "twice"},
		"repeated inside":          {`{"parts":[{"name":"a","name":"b"}]}`, "twice"},
		"another case":             {`{"Version":1}`, "unknown field"},
		"escaped":                  {`{"versi\u006fn":1}`, "unknown field"},
		"unknown":                  {`{"more":1}`, "unknown field"},
		"behind the end":           {`{"version":1}x`, "data after the end"},
		"a second document":        {`{"version":1}{"version":1}`, "data after the end"},
		"deep":                     {strings.Repeat(`{"a":`, 9) + "1" + strings.Repeat("}", 9), "nested deeper"},
		"many values":              {`{"any":[` + strings.Repeat("1,", 4096) + `1]}`, "more than 4096"},
		"many objects":             {`{"parts":[` + strings.Repeat("{},", 4096) + `{}]}`, "more than 4096"},
		"many spaces":              {`{"version":` + strings.Repeat(" ", 9000) + `1}`, ""},
		"number":                   {`1`, "not an object"},
		"text":                     {`"a"`, "not an object"},
		"cut":                      {`{"version":1`, "unexpected EOF"},
		"cut in a string":          {`{"version":"`, "unexpected EOF"},
		"cut behind an escape":     {`{"text":"\"`, "unexpected EOF"},
		"nothing":                  {``, "unexpected EOF"},
		"closed before it is open": {`}`, "not an object"},
		"closed as what it is not": {`{"parts":[}]`, "invalid character"},
		"no comma":                 {`{"text":"a" "version":1}`, "invalid character"},
		"key twice without colon":  {`{"version","version":1}`, "twice"},
	} {
		err := Decode([]byte(c.in), &message{})
		if c.err == "" {
			assert.NoError(t, err, name)
		} else {
			assert.ErrorContains(t, err, c.err, name)
		}
	}
}

// FuzzDecode holds the scan against encoding/json, token by token: what is
// accepted has each key once and as declared.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{"version":1,"data":"AAAA","parts":[{"name":"a"}]}`, `{"text":"\\\"","version":1}`, `{"any":{"a":"b","a":"c"}}`, `{"text":"\u0022","text":""}`, `[]`, `{"parts":[[[]]]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if Decode(data, &message{}) == nil {
			if err := byTokens(data); err != nil {
				t.Fatalf("accepted %q: %v", data, err)
			}
		}
	})
}

func byTokens(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	type level struct {
		keys map[string]bool
		key  bool
	}
	var stack []level
	for n := 0; ; n++ {
		tok, err := dec.Token()
		if err != nil {
			return err
		}
		if n == maxTokens {
			return errors.New("many")
		}
		if d, ok := tok.(json.Delim); ok && (d == '{' || d == '[') {
			l := level{}
			if d == '{' {
				l = level{keys: map[string]bool{}, key: true}
			}
			if stack = append(stack, l); len(stack) > maxDepth {
				return errors.New("deep")
			}
			continue
		}
		if len(stack) == 0 {
			return errors.New("not an object")
		}
		top := &stack[len(stack)-1]
		if d, ok := tok.(json.Delim); ok && (d == '}' || d == ']') {
			if stack = stack[:len(stack)-1]; len(stack) == 0 {
				break
			}
			top = &stack[len(stack)-1]
		} else if top.key {
			k := tok.(string)
			if top.keys[k] || strings.ToLower(k) != k {
				return fmt.Errorf("key %q", k)
			}
			top.keys[k], top.key = true, false
			continue
		}
		top.key = top.keys != nil
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the end")
	}
	return nil
}

func BenchmarkDecode(b *testing.B) {
	data, _ := json.Marshal(message{Version: 1, Data: make([]byte, 20000), Parts: []part{{"a"}}})
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if err := Decode(data, &message{}); err != nil {
			b.Fatal(err)
		}
	}
}
