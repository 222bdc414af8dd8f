package main

import (
	"encoding/binary"
	"sync/atomic"
)

// cp2112 is a software CP2112: a USB HID device with eight GPIO lines, whose
// stock driver offers them as a GPIO character device with edge events.
type cp2112 struct {
	lines atomic.Uint32
}

const presenceLine = 3

func (c *cp2112) set(present bool) {
	v := uint32(0)
	if present {
		v = 1 << presenceLine
	}
	c.lines.Store(v)
}

var (
	hidDevice = []byte{18, 1, 0x00, 0x02, 0, 0, 0, 64, 0xc4, 0x10, 0x90, 0xea, 0x00, 0x01, 0, 0, 0, 1}
	hidConfig = []byte{9, 2, 41, 0, 1, 1, 0, 0x80, 50,
		9, 4, 0, 0, 2, 3, 0, 0, 0, // interface of class HID
		9, 0x21, 0x01, 0x01, 0, 1, 0x22, byte(len(hidReport)), 0,
		7, 5, 0x81, 3, 64, 0, 10,
		7, 5, 0x01, 3, 64, 0, 10}
	// One vendor's report is enough for the parser: the driver asks by number.
	hidReport = []byte{0x06, 0x00, 0xff, 0x09, 0x01, 0xa1, 0x01, 0x85, 0x13, 0x09, 0x02, 0x15, 0x00, 0x26, 0xff, 0x00, 0x75, 0x08, 0x95, 0x3f, 0x81, 0x02, 0xc0}
)

func (c *cp2112) control(setup, _ []byte, length int) (in []byte, status int32) {
	value := binary.LittleEndian.Uint16(setup[2:])
	if setup[0]&0x60 == 0 { // standard requests
		switch {
		case setup[1] == 6 && value>>8 == 1:
			return hidDevice, 0
		case setup[1] == 6 && value>>8 == 2:
			return hidConfig, 0
		case setup[1] == 6 && value>>8 == 0x22:
			return hidReport, 0
		case setup[1] == 6:
			return nil, stall
		case setup[1] == 0:
			return []byte{0, 0}, 0
		}
		return nil, 0
	}
	if setup[1] != 1 { // other than GET_REPORT
		return nil, 0
	}
	report := make([]byte, length)
	report[0] = byte(value)
	switch report[0] {
	case 0x03: // values of the lines
		report[1] = byte(c.lines.Load())
	case 0x05: // part and version
		copy(report[1:], []byte{0x0c, 0x02})
	}
	return report, 0
}
