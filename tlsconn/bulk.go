package tlsconn

import (
	"sync"
	"sync/atomic"
)

// Sizes of the buffers that bytes pass through, in bytes. The larger one takes
// four times as many with one system call.
const (
	bulkBuffer  = 256 << 10
	smallBuffer = 64 << 10
	// Large buffers in use at once in this process: beyond relayShare a relay
	// makes do with small ones, and beyond tunnelShare a TLS connection, so that
	// who has many busy flows keeps its memory.
	relayShare  = 16
	tunnelShare = 64
)

// buffers are held only while bytes move.
var buffers bufferPool

type bufferPool struct {
	large, small sync.Pool
	used         atomic.Int32
}

// get returns a buffer of bulkBuffer or of smallBuffer bytes, with room for the
// overhead of their records in its capacity.
func (p *bufferPool) get(share int32) *[]byte {
	pool, size := &p.large, bulkBuffer
	if p.used.Add(1) > share {
		p.used.Add(-1)
		pool, size = &p.small, smallBuffer
	}
	if b, ok := pool.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, size, size+size/16)
	return &b
}

func (p *bufferPool) put(b *[]byte) {
	if len(*b) < bulkBuffer {
		p.small.Put(b)
		return
	}
	p.large.Put(b)
	p.used.Add(-1)
}
