package fscrypt

import (
	"container/list"
	"io"
	"sync"
)

const defaultCache = 8 << 20 // bytes

// chunkCache keeps decrypted chunks, the last used ones.
type chunkCache struct {
	max int // chunks

	mu     sync.Mutex
	chunks map[chunkID]*list.Element
	order  list.List // of *chunk, the last used in front
	erased bool
}

type chunkID struct {
	object string
	index  int64
}

type chunk struct {
	id   chunkID
	data []byte
}

func newChunkCache(bytes int) *chunkCache {
	if bytes == 0 {
		bytes = defaultCache
	}
	return &chunkCache{max: max(bytes/chunkSize, 1), chunks: map[chunkID]*list.Element{}}
}

// read copies what one chunk has for p at off, which is inside the part.
func (c *chunkCache) read(r *partReader, p []byte, off int64) (int, error) {
	id := chunkID{r.ID, off / chunkSize}
	within := off % chunkSize
	c.mu.Lock()
	if e := c.chunks[id]; e != nil {
		n := copy(p, e.Value.(*chunk).data[within:])
		if c.order.Front() != e {
			c.order.MoveToFront(e)
		}
		c.mu.Unlock()
		return n, nil
	}
	c.mu.Unlock()
	start := id.index * chunkSize
	data := make([]byte, min(r.Size-start, chunkSize))
	if n, err := r.plain.ReadAt(data, start); err != nil && (err != io.EOF || n < len(data)) {
		return 0, err
	}
	n := copy(p, data[within:])
	c.add(&chunk{id, data})
	return n, nil
}

func (c *chunkCache) add(ch *chunk) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.erased || c.chunks[ch.id] != nil {
		clear(ch.data)
		return
	}
	for c.order.Len() >= c.max {
		last := c.order.Remove(c.order.Back()).(*chunk)
		delete(c.chunks, last.id)
		clear(last.data)
	}
	c.chunks[ch.id] = c.order.PushFront(ch)
}

// clear overwrites what is cached and caches no more.
func (c *chunkCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.erased = true
	for _, e := range c.chunks {
		clear(e.Value.(*chunk).data)
	}
	c.chunks = nil
	c.order.Init()
}
