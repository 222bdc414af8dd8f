package spdm

import (
	"errors"
	"fmt"
)

// Messages that are larger than one transfer travel in chunks (DSP0274, since
// version 1.2). Chunks are not part of any transcript: the message is.

const (
	lastChunk    = 1 << 0 // attribute of CHUNK_SEND and CHUNK_RESPONSE
	earlyError   = 1 << 0 // attribute of CHUNK_SEND_ACK
	chunkHeader  = 12     // bytes before the data of a chunk; 4 more in the first one
	minChunkData = 16     // a responder that sends less in each chunk wastes our time
)

var errChunks = errors.New("the chunks of a message do not fit together")

// appendSeq appends the number of a chunk: 16 bits, and 32 since 1.4.
func appendSeq(p []byte, v Version, seq int) []byte {
	if v >= Version14 {
		return le.AppendUint32(p, uint32(seq))
	}
	return le.AppendUint16(p, uint16(seq))
}

// seq takes the number of a chunk off a message; before 1.4, chunks with data
// have two reserved bytes behind it.
func (r *reader) seq(v Version, reserved bool) int {
	if v >= Version14 {
		return int(r.u32())
	}
	n := r.u16()
	if reserved {
		r.u16()
	}
	return n
}

// chunk makes CHUNK_SEND or CHUNK_RESPONSE number seq of a message, from its
// byte at, in at most most bytes. It returns how many bytes of the message it
// took.
func chunk(v Version, code, handle byte, seq int, message []byte, at, most int) (p []byte, n int) {
	room := most - chunkHeader
	if seq == 0 {
		room -= 4
	}
	n = min(room, len(message)-at)
	attributes := byte(0)
	if at+n == len(message) {
		attributes = lastChunk
	}
	p = appendSeq([]byte{byte(v), code, attributes, handle}, v, seq)
	if v < Version14 {
		p = append(p, 0, 0)
	}
	p = le.AppendUint32(p, uint32(n))
	if seq == 0 {
		p = le.AppendUint32(p, uint32(len(message)))
	}
	return append(p, message[at:at+n]...), n
}

// joiner puts a message together from its chunks.
type joiner struct {
	message []byte
	total   int
	seq     int
}

// add takes a CHUNK_SEND or CHUNK_RESPONSE after its header. It reports
// whether the message is whole.
func (j *joiner) add(v Version, attributes byte, body []byte, limit int) (bool, error) {
	r := reader{p: body}
	seq, n := r.seq(v, true), int64(r.u32())
	if j.seq == 0 {
		if total := int64(r.u32()); total <= int64(limit) {
			j.total = int(total)
		}
		if j.total == 0 {
			return false, fmt.Errorf("%w: it is empty or larger than %d bytes", errChunks, limit)
		}
	}
	if n > int64(j.total-len(j.message)) {
		return false, fmt.Errorf("%w: more than was announced", errChunks)
	}
	data, last := r.bytes(int(n)), attributes&lastChunk != 0
	for _, b := range r.p {
		if b != 0 || len(r.p) > 3 { // what a transport pads with
			return false, fmt.Errorf("%w: bytes after a chunk", errChunks)
		}
	}
	j.message = append(j.message, data...)
	whole := len(j.message) == j.total
	if r.bad || seq != j.seq || last != whole || !last && n < minChunkData {
		return false, fmt.Errorf("%w: chunk %d of %d bytes where %d was due", errChunks, seq, n, j.seq)
	}
	j.seq++
	return whole, nil
}

// fetch reads an answer that is too large for one transfer.
func (x *exchange) fetch(handle byte) ([]byte, error) {
	var j joiner
	for {
		rsp, err := x.patient(appendSeq(x.header(reqChunkGet, 0, handle), x.t.version, j.seq), false)
		if err != nil {
			return nil, err
		}
		if len(rsp) < 4 || Version(rsp[0]) != x.t.version || rsp[1] != rspChunk || rsp[3] != handle {
			x.bad = true
			return nil, fmt.Errorf("spdm: %w: CHUNK_GET was answered with something else", errChunks)
		}
		whole, err := j.add(x.t.version, rsp[2], rsp[4:], maxLarge)
		if err != nil {
			x.bad = true
			return nil, fmt.Errorf("spdm: %w", err)
		}
		if whole {
			return j.message, nil
		}
	}
}

// send makes one exchange, with the request in chunks if the responder can't
// take it at once.
func (x *exchange) send(req []byte) ([]byte, error) {
	exchange := func(p []byte) ([]byte, error) {
		rsp, err := x.r.t.Exchange(x.ctx, p)
		if err != nil {
			return nil, fmt.Errorf("spdm: %w", err)
		}
		return rsp, nil
	}
	if x.t.most == 0 || len(req) <= x.t.most {
		return exchange(req)
	}
	if !x.t.chunks {
		x.bad = true
		return nil, fmt.Errorf("spdm: the responder takes %d bytes at once and no chunks; the request has %d", x.t.most, len(req))
	}
	x.handle++
	for at, seq := 0, 0; ; seq++ {
		p, n := chunk(x.t.version, reqChunkSend, x.handle, seq, req, at, x.t.most)
		at += n
		ack, err := exchange(p)
		if err != nil {
			return nil, err
		}
		if len(ack) >= 4 && ack[1] == rspError {
			return ack, nil
		}
		if len(ack) < 4 || Version(ack[0]) != x.t.version || ack[1] != rspChunkAck || ack[3] != x.handle {
			x.bad = true
			return nil, fmt.Errorf("spdm: %w: CHUNK_SEND was answered with something else", errChunks)
		}
		r := reader{p: ack[4:]}
		got := r.seq(x.t.version, false)
		if r.bad || got != seq {
			x.bad = true
			return nil, fmt.Errorf("spdm: %w: chunk %d was acknowledged as %d", errChunks, seq, got)
		}
		if at == len(req) || ack[2]&earlyError != 0 {
			return r.p, nil
		}
	}
}

// chunks is a responder's side of them.
type chunks struct {
	on     bool
	peer   int // bytes that the requester takes at once; 0: any
	joiner joiner
	from   byte // handle of what the requester sends
	large  []byte
	handle byte
	at     int
	seq    int
}

// fit returns an answer, or, if it is too large for one transfer with so many
// bytes before it, keeps it for CHUNK_GET.
func (r *Responder) fit(rsp []byte, before int) []byte {
	most := r.cfg.TransferSize
	if r.chunks.peer > 0 {
		most = min(most, r.chunks.peer)
	}
	if r.version < Version12 || before+len(rsp) <= most {
		return rsp
	}
	if !r.chunks.on || len(rsp) > maxLarge {
		return r.refuse(errTooLarge)
	}
	r.chunks.handle++
	r.chunks.large, r.chunks.at, r.chunks.seq = rsp, 0, 0
	return append(r.refuse(errLarge), r.chunks.handle)
}

// chunk answers CHUNK_SEND and CHUNK_GET.
func (r *Responder) chunk(req []byte) []byte {
	c := &r.chunks
	if !c.on || Version(req[0]) != r.version || len(req) > r.cfg.TransferSize {
		return r.refuse(errUnexpected)
	}
	if req[1] == reqChunkGet {
		q := reader{p: req[4:]}
		if seq := q.seq(r.version, false); q.end() != nil || c.large == nil || req[3] != c.handle || seq != c.seq {
			return r.refuse(errInvalidRequest)
		}
		rsp, n := chunk(r.version, rspChunk, c.handle, c.seq, c.large, c.at, min(r.cfg.TransferSize, c.peer))
		c.at, c.seq = c.at+n, c.seq+1
		if c.at == len(c.large) {
			c.large = nil
		}
		return rsp
	}
	seq := c.joiner.seq
	if seq == 0 {
		c.from, c.large = req[3], nil
	}
	whole, err := c.joiner.add(r.version, req[2], req[4:], maxLarge)
	if err != nil || req[3] != c.from {
		c.joiner = joiner{}
		return r.refuse(errInvalidRequest)
	}
	ack := appendSeq([]byte{byte(r.version), rspChunkAck, 0, c.from}, r.version, seq)
	if !whole {
		return ack
	}
	message := c.joiner.message
	c.joiner = joiner{}
	if len(message) < 4 || message[1] == reqChunkSend || message[1] == reqChunkGet {
		return append(ack, r.refuse(errInvalidRequest)...)
	}
	return append(ack, r.fit(r.answer(message), len(ack))...)
}
