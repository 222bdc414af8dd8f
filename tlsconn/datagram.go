package tlsconn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"golang.org/x/time/rate"
)

// maxDatagram is the largest datagram that passes, in bytes.
const maxDatagram = 65507

// amplifiers are UDP ports whose services answer much to little, which makes
// them weapons: a rule must name the single port, ranges do not reach them.
var amplifiers = []uint16{17, 19, 53, 69, 111, 123, 137, 161, 389, 520, 1434, 1900, 3283, 3702, 5093, 5353, 5683, 10001, 11211, 27015}

// packetConn keeps message boundaries over a flow's stream: each datagram has
// its length, 16 bits big-endian, before it.
type packetConn struct {
	*flowConn
	rmu  sync.Mutex
	wmu  sync.Mutex
	head [2]byte
	pace *rate.Limiter // of what arrives; nil: unlimited
}

func newPacketConn(c *flowConn) *packetConn {
	p := &packetConn{flowConn: c}
	if n := c.f.t.e.cfg.Limits.PacketsPerSecond; n > 0 {
		p.pace = rate.NewLimiter(rate.Limit(n), n)
	}
	return p
}

// Read reads one datagram; what does not fit into b is lost, as with UDP.
// Datagrams beyond the flow's rate are dropped, as a network would.
func (c *packetConn) Read(b []byte) (int, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	for {
		n, err := c.read(b)
		if err != nil || c.pace == nil || c.pace.Allow() {
			return n, err
		}
		c.f.dropped.Add(1)
	}
}

func (c *packetConn) read(b []byte) (int, error) {
	if _, err := io.ReadFull(c.flowConn, c.head[:]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(c.head[:]))
	if n > maxDatagram {
		err := fmt.Errorf("%w: datagram of %d bytes", ErrProtocol, n)
		c.f.reset(CodeProtocol, "", err)
		return 0, err
	}
	got := min(n, len(b))
	if _, err := io.ReadFull(c.flowConn, b[:got]); err != nil {
		return 0, noEOF(err)
	}
	if got < n {
		if _, err := io.CopyN(io.Discard, struct{ io.Reader }{c.flowConn}, int64(n-got)); err != nil {
			return 0, noEOF(err)
		}
	}
	return got, nil
}

// Write writes one datagram.
func (c *packetConn) Write(b []byte) (int, error) {
	if len(b) > maxDatagram {
		return 0, fmt.Errorf("tlsconn: datagram of %d bytes, at most %d", len(b), maxDatagram)
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	buf := make([]byte, 2+len(b))
	binary.BigEndian.PutUint16(buf, uint16(len(b)))
	copy(buf[2:], b)
	if _, err := c.flowConn.Write(buf); err != nil {
		return 0, err
	}
	return len(b), nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// relayPackets copies datagrams both ways until the flow ends.
func relayPackets(c *packetConn, far net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, maxDatagram)
		for {
			n, err := far.Read(buf)
			if err != nil {
				if isClosed(err) || c.f.isEnded() {
					return
				}
				continue // an ICMP error about an earlier datagram
			}
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
	})
	buf := make([]byte, maxDatagram)
	for {
		n, err := c.Read(buf)
		if err != nil {
			if err != io.EOF {
				c.f.reset(codeOf(err), "", err)
			}
			break
		}
		if _, err := far.Write(buf[:n]); err != nil && errors.Is(err, net.ErrClosed) {
			break
		}
	}
	_ = far.Close()
	_ = c.Close()
	wg.Wait()
}

func (f *flow) isEnded() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ended
}
