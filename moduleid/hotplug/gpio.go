package hotplug

import "encoding/binary"

// GPIO is a Source that watches one presence line through the GPIO character
// device (/dev/gpiochipN, ABI version 2). It needs Linux 5.10.
type GPIO struct {
	Connector string
	Chip      string // "/dev/gpiochip0"
	Line      uint32 // offset of the line on that chip
	ActiveLow bool   // a low line means present
}

// lineEvent is struct gpio_v2_line_event of linux/gpio.h.
type lineEvent struct {
	id  uint32
	seq uint32 // of the line
}

const (
	lineEventSize = 48
	risingEdge    = 1
	fallingEdge   = 2
)

// parseLineEvents reads the events of one read.
func parseLineEvents(p []byte) []lineEvent {
	var out []lineEvent
	for len(p) >= lineEventSize {
		out = append(out, lineEvent{id: binary.NativeEndian.Uint32(p[8:]), seq: binary.NativeEndian.Uint32(p[20:])})
		p = p[lineEventSize:]
	}
	return out
}
