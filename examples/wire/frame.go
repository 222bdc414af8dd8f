package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// MaxFrame bounds one message of the attestation stream, in bytes. Evidence
// with an event log and a long IMA log is its largest.
const MaxFrame = 32 << 20

// WriteFrame writes one message: its length in four bytes, big endian, then
// the message.
func WriteFrame(w io.Writer, msg []byte) error {
	if len(msg) > MaxFrame {
		return fmt.Errorf("message of %d bytes, at most %d are allowed", len(msg), MaxFrame)
	}
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(msg))), msg...))
	return err
}

// ReadFrame reads one message of at most limit bytes. It allocates as bytes
// arrive, not as the length promises.
func ReadFrame(r io.Reader, limit uint32) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > min(limit, MaxFrame) {
		return nil, fmt.Errorf("message of %d bytes, at most %d are allowed", n, min(limit, MaxFrame))
	}
	msg, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(msg) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, errors.Join(errors.New("message cut short"), err)
	}
	return msg, nil
}
