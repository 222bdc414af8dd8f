package tlsconn

import (
	"math"
	"strconv"
	"strings"
)

// The frames that every flow has are written and read here without encoding/json,
// which takes ten times as long: byte for byte as it writes them. What is not
// in just this form is left to it.

// appendPlain appends a frame's JSON, or says that encoding/json must.
func appendPlain(b []byte, v any) ([]byte, bool) {
	switch f := v.(type) {
	case openFrame:
		if f.Version != wireVersion || f.Kind != kindFlow || !plain(f.Flow) || !plain(f.Proto) || !plain(f.Host) {
			return b, false
		}
		b = append(b, `{"version":1,"kind":"flow"`...)
		b = appendString(b, `,"flow":"`, f.Flow)
		b = appendString(b, `,"proto":"`, f.Proto)
		b = appendString(b, `,"host":"`, f.Host)
		b = appendNumber(b, `,"port":`, uint64(f.Port))
	case replyFrame:
		if f != (replyFrame{Version: wireVersion}) {
			return b, false
		}
		b = append(b, `{"version":1,"code":0`...)
	case controlFrame:
		if f != (controlFrame{Version: wireVersion, Type: ctlEnd, Flow: f.Flow, Up: f.Up, Down: f.Down, Code: f.Code}) || !plain(f.Flow) {
			return b, false
		}
		b = append(b, `{"version":1,"type":"end"`...)
		b = appendString(b, `,"flow":"`, f.Flow)
		b = appendNumber(b, `,"up":`, f.Up)
		b = appendNumber(b, `,"down":`, f.Down)
		b = appendNumber(b, `,"code":`, uint64(f.Code))
	default:
		return b, false
	}
	return append(b, '}'), true
}

// plain reports whether a string is its own JSON.
func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == ':') {
			return false
		}
	}
	return true
}

func appendString(b []byte, key, s string) []byte {
	if s == "" {
		return b
	}
	return append(append(append(b, key...), s...), '"')
}

func appendNumber(b []byte, key string, n uint64) []byte {
	if n == 0 {
		return b
	}
	return strconv.AppendUint(append(b, key...), n, 10)
}

// readPlain reads what appendPlain writes, and nothing else.
func readPlain(body []byte, v any) bool {
	r := plainReader{rest: string(body), ok: true}
	switch f := v.(type) {
	case *openFrame:
		g := openFrame{Version: wireVersion, Kind: kindFlow}
		r.need(`{"version":1,"kind":"flow"`)
		g.Flow, g.Proto, g.Host = r.text(`,"flow":"`), r.text(`,"proto":"`), r.text(`,"host":"`)
		g.Port = uint16(r.number(`,"port":`, math.MaxUint16))
		if r.end() {
			*f = g
		}
	case *replyFrame:
		r.need(`{"version":1,"code":0`)
		if r.end() {
			*f = replyFrame{Version: wireVersion}
		}
	case *controlFrame:
		g := controlFrame{Version: wireVersion, Type: ctlEnd}
		r.need(`{"version":1,"type":"end"`)
		g.Flow, g.Up, g.Down = r.text(`,"flow":"`), r.number(`,"up":`, math.MaxUint64), r.number(`,"down":`, math.MaxUint64)
		g.Code = Code(r.number(`,"code":`, math.MaxUint32))
		if r.end() {
			*f = g
		}
	default:
		return false
	}
	return r.ok
}

// plainReader takes pieces off the front of a frame; ok is false once one is not
// as expected.
type plainReader struct {
	rest string
	ok   bool
}

func (r *plainReader) need(s string) {
	if r.ok {
		r.rest, r.ok = strings.CutPrefix(r.rest, s)
	}
}

// text and number return the zero value of a field that is left out.
func (r *plainReader) text(key string) (s string) {
	rest, found := strings.CutPrefix(r.rest, key)
	if !r.ok || !found {
		return ""
	}
	s, r.rest, r.ok = strings.Cut(rest, `"`)
	r.ok = r.ok && s != "" && plain(s)
	return s
}

func (r *plainReader) number(key string, most uint64) uint64 {
	rest, found := strings.CutPrefix(r.rest, key)
	if !r.ok || !found {
		return 0
	}
	digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
	n, err := strconv.ParseUint(rest[:digits], 10, 64)
	r.rest, r.ok = rest[digits:], err == nil && rest[0] != '0' && n <= most
	return n
}

func (r *plainReader) end() bool {
	r.ok = r.ok && r.rest == "}"
	return r.ok
}
