package tlsconn

import "net"

// sinkTo has what comes on the flow while a Read waits be written to dst by the
// goroutine that reads the tunnel, as far as dst takes it at once, so that no
// other has to be woken for it. *moved counts those bytes, for who reads the flow,
// and stop takes it off. What is no socket, or has a guard before it, gets none.
func (c *flowConn) sinkTo(dst net.Conn, moved *uint64) (stop func()) {
	sock := socketOf(dst)
	if sock == nil || c.guard != nil && !c.f.opener {
		return func() {}
	}
	c.s.SetSink(func(b []byte) int {
		if c.closed.Load() || !c.f.t.caps.afford(len(b)) {
			return 0
		}
		n := sock.give(b)
		c.f.in.Add(uint64(n))
		c.prepaid += len(b) - n
		*moved += uint64(n)
		return n
	})
	return func() { c.s.SetSink(nil) }
}
