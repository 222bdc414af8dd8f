package lint

import (
	"encoding/json"
	"reflect"
	"strings"
)

// exact refuses members whose names differ from those of t in case alone:
// encoding/json takes them for each other, and other decoders do not.
func exact(t reflect.Type, raw []byte) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return nil
	}
	switch t.Kind() {
	case reflect.Struct:
		fields := map[string]reflect.Type{}
		names(t, fields)
		return members(raw, func(name string, value []byte) error {
			f, ok := fields[name]
			if !ok {
				return invalid("unknown member %.60q", name)
			}
			return exact(f, value)
		})
	case reflect.Map:
		return members(raw, func(_ string, value []byte) error { return exact(t.Elem(), value) })
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 { // in base64
			return nil
		}
		var list []json.RawMessage
		if err := json.Unmarshal(raw, &list); err != nil {
			return invalid("%v", err)
		}
		for _, v := range list {
			if err := exact(t.Elem(), v); err != nil {
				return err
			}
		}
	}
	return nil
}

// names lists a struct's members, those of embedded structs too.
func names(t reflect.Type, fields map[string]reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "" && f.Type.Kind() == reflect.Struct:
			names(f.Type, fields)
		case name == "-" || !f.IsExported():
		case name == "":
			fields[f.Name] = f.Type
		default:
			fields[name] = f.Type
		}
	}
}

func members(raw []byte, f func(name string, value []byte) error) error {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		return invalid("%v", err)
	}
	for name, value := range m {
		if err := f(name, value); err != nil {
			return err
		}
	}
	return nil
}
