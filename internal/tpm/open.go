package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

// DefaultPath is the kernel's resource-managed TPM device.
const DefaultPath = "/dev/tpmrm0"

// Open opens a TPM: a character device such as /dev/tpmrm0 (the default when
// name is empty), or "unix:PATH" for a socket on which a software TPM serves
// raw TPM commands (swtpm's --server type=unixio).
func Open(ctx context.Context, name string) (*Device, error) {
	if name == "" {
		name = DefaultPath
	}
	if path, ok := strings.CutPrefix(name, "unix:"); ok {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		if err != nil {
			return nil, fmt.Errorf("tpm: open %s: %w", name, err)
		}
		return Wrap(&stream{rwc: conn}), nil
	}
	fi, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("tpm: open %s: %w (is there a TPM, and is its driver loaded?)", name, err)
	}
	if fi.Mode()&os.ModeCharDevice == 0 {
		return nil, fmt.Errorf("tpm: open %s: not a character device (for a socket say unix:%s)", name, name)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("tpm: open %s: %w", name, err)
	}
	return Wrap(&charDevice{f: f}), nil
}

// charDevice speaks to the kernel's TPM character device: one write carries a
// command, one read brings the whole response.
type charDevice struct{ f *os.File }

func (c *charDevice) Send(command []byte) ([]byte, error) {
	if _, err := c.f.Write(command); err != nil {
		return nil, fmt.Errorf("tpm: write command to %s: %w", c.f.Name(), err)
	}
	buf := make([]byte, MaxMessage)
	n, err := c.f.Read(buf)
	if err != nil {
		return nil, fmt.Errorf("tpm: read response from %s: %w", c.f.Name(), err)
	}
	return buf[:n], nil
}

func (c *charDevice) Close() error { return c.f.Close() }

// stream speaks raw TPM commands over a byte stream.
type stream struct {
	rwc    io.ReadWriteCloser
	broken error // set once request and response may be out of step
}

// exchangeTimeout bounds one command over a stream. Key generation for RSA
// 4096 is the slowest command met.
const exchangeTimeout = 5 * time.Minute

func (s *stream) Send(command []byte) (rsp []byte, err error) {
	if s.broken != nil {
		return nil, fmt.Errorf("tpm: connection unusable after: %w", s.broken)
	}
	defer func() { s.broken = err }()
	if c, ok := s.rwc.(net.Conn); ok {
		if err := c.SetDeadline(time.Now().Add(exchangeTimeout)); err != nil {
			return nil, err
		}
	}
	if _, err := s.rwc.Write(command); err != nil {
		return nil, fmt.Errorf("tpm: send command: %w", err)
	}
	var header [10]byte
	if _, err := io.ReadFull(s.rwc, header[:]); err != nil {
		return nil, fmt.Errorf("tpm: read response: %w", err)
	}
	size := binary.BigEndian.Uint32(header[2:])
	if size < 10 || size > MaxMessage {
		return nil, fmt.Errorf("tpm: response says %d bytes, limit %d", size, MaxMessage)
	}
	rsp = make([]byte, size)
	copy(rsp, header[:])
	if _, err := io.ReadFull(s.rwc, rsp[10:]); err != nil {
		return nil, fmt.Errorf("tpm: read response: %w", err)
	}
	return rsp, nil
}

func (s *stream) Close() error { return s.rwc.Close() }

// Channel is a TPM as the byte stream that older libraries want (go-tpm's
// legacy API, and go-attestation's CommandChannelTPM20). Unlike
// transport.ToReadWriter it returns no EOF together with a response.
type Channel struct {
	d   *Device
	rsp []byte
	log func() ([]byte, error)
}

// NewChannel returns t as a byte stream. log, which may be nil, supplies the
// boot's event log. A Channel is not safe for concurrent use.
func NewChannel(d *Device, log func() ([]byte, error)) *Channel {
	return &Channel{d: d, log: log}
}

// Write sends one whole command.
func (c *Channel) Write(command []byte) (int, error) {
	rsp, err := c.d.Send(command)
	if err != nil {
		return 0, err
	}
	c.rsp = rsp
	return len(command), nil
}

// Read returns the response to the command written last, once.
func (c *Channel) Read(p []byte) (int, error) {
	if len(c.rsp) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.rsp)
	c.rsp = c.rsp[n:]
	return n, nil
}

// Close does nothing: the Device belongs to who opened it.
func (c *Channel) Close() error { return nil }

// MeasurementLog returns the boot's event log.
func (c *Channel) MeasurementLog() ([]byte, error) {
	if c.log == nil {
		return nil, errors.New("tpm: no event log configured")
	}
	return c.log()
}
