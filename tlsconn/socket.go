package tlsconn

import (
	"net"
	"time"
)

// deadAfter is how long a silent network cut takes to be seen by an end that
// only receives.
const deadAfter = 30 * time.Second

// tuneSocket has the kernel notice that the other end is gone without a word.
// TCP_USER_TIMEOUT is not set: it would also kill a connection whose reader
// pauses (RFC 9293 3.8.6.1 keeps those open).
func tuneSocket(c net.Conn) {
	if tc, ok := c.(*net.TCPConn); ok {
		_ = tc.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: deadAfter / 2, Interval: deadAfter / 6, Count: 3})
	}
}
