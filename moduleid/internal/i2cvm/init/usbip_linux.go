package main

import (
	"context"
	"encoding/binary"
	"io"
	"os"
	"sync"

	"github.com/trusttree/trusttree/moduleid/moduleidtest"
)

// The adapter is a software USB device that speaks the i2c-tiny-usb protocol,
// attached by USB/IP's virtual host controller: the stock drivers usbcore,
// i2c-tiny-usb and i2c-dev are in the path.
var (
	deviceDescriptor = []byte{18, 1, 0x10, 0x01, 0xff, 0, 0, 8, 0x03, 0x04, 0x31, 0xc6, 0x05, 0x02, 0, 0, 0, 1}
	configDescriptor = []byte{9, 2, 18, 0, 1, 1, 0, 0x80, 50, 9, 4, 0, 0, 0, 0, 0, 0, 0}
)

const (
	statusAck  = 1
	statusNack = 2
	stall      = -32
)

// device is what a software USB device does with a control request.
type device interface {
	control(setup, out []byte, length int) (in []byte, status int32)
}

// port carries the requests of the virtual host controller to a device.
type port struct {
	device
	f *os.File

	mu sync.Mutex
}

// adapter is the I2C adapter.
type adapter struct {
	bus    *moduleidtest.Bus
	status byte
}

// serve answers until the connection ends. Interrupt transfers towards the
// host stay open: these devices have nothing to say of their own.
func (a *port) serve() {
	be := binary.BigEndian
	for {
		h := make([]byte, 48)
		if _, err := io.ReadFull(a.f, h); err != nil {
			return
		}
		seq := be.Uint32(h[4:])
		r := make([]byte, 48)
		be.PutUint32(r[4:], seq)
		if be.Uint32(h) == 2 { // CMD_UNLINK
			be.PutUint32(r, 4)
			a.write(r)
			continue
		}
		in, length := be.Uint32(h[12:]) == 1, int(be.Uint32(h[24:]))
		var out []byte
		if !in && length > 0 {
			out = make([]byte, length)
			if _, err := io.ReadFull(a.f, out); err != nil {
				return
			}
		}
		var data []byte
		var status int32
		switch endpoint := be.Uint32(h[16:]); {
		case endpoint == 0:
			data, status = a.control(h[40:48], out, length)
		case in:
			continue
		}
		if len(data) > length {
			data = data[:length]
		}
		actual := len(data)
		if !in {
			actual = len(out)
		}
		be.PutUint32(r, 3) // RET_SUBMIT
		be.PutUint32(r[20:], uint32(status))
		be.PutUint32(r[24:], uint32(actual))
		if in {
			r = append(r, data...)
		}
		a.write(r)
	}
}

func (a *port) write(p []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, _ = a.f.Write(p) // a connection that ended shows at the next read
}

// control carries out one control request.
func (a *adapter) control(setup, out []byte, length int) (in []byte, status int32) {
	request := setup[1]
	value, index := binary.LittleEndian.Uint16(setup[2:]), binary.LittleEndian.Uint16(setup[4:])
	if setup[0]&0x60 == 0 { // standard requests
		switch {
		case request == 6 && value>>8 == 1:
			return deviceDescriptor, 0
		case request == 6 && value>>8 == 2:
			return configDescriptor, 0
		case request == 6:
			return nil, stall
		case request == 0:
			return []byte{0, 0}, 0
		}
		return nil, 0
	}
	switch {
	case request == 1: // functions: I2C and emulated SMBus
		return []byte{0x01, 0x00, 0xff, 0x0e}, 0
	case request == 3:
		return []byte{a.status}, 0
	case request&0xfc == 4:
		return a.transfer(uint8(index), value&1 != 0, out, length), 0
	}
	return nil, 0
}

// transfer is one I2C message.
func (a *adapter) transfer(addr uint8, read bool, out []byte, length int) []byte {
	ctx := context.Background()
	a.status = statusAck
	var in []byte
	var err error
	switch {
	case addr == 0: // SDA is low for nine clocks; nobody acknowledges
		err = a.bus.Wake(ctx)
		a.status = statusNack
	case read:
		in = make([]byte, length)
		err = a.bus.Tx(ctx, addr, nil, in)
	default:
		err = a.bus.Tx(ctx, addr, out, nil)
	}
	if err != nil {
		a.status = statusNack
	}
	return in
}
