//go:build !unix

package tlsconn

// fill reads into a pooled buffer.
func (c *batchConn) fill() error {
	c.in = readBuffers.Get().(*[]byte)
	n, err := c.Conn.Read(*c.in)
	if n == 0 {
		readBuffers.Put(c.in)
		c.in = nil
		return err
	}
	c.got = (*c.in)[:n]
	return nil
}
