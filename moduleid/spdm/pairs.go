package spdm

import (
	"encoding/binary"
	"errors"
)

// maxPairs bounds a transcript.
const maxPairs = maxChainReads + 16

// encodePairs writes messages, each after its length as a 32-bit big-endian
// integer.
func encodePairs(messages [][]byte) []byte {
	var out []byte
	for _, m := range messages {
		out = binary.BigEndian.AppendUint32(out, uint32(len(m)))
		out = append(out, m...)
	}
	return out
}

// decodePairs is the reverse of encodePairs.
func decodePairs(p []byte) ([][]byte, error) {
	var messages [][]byte
	for len(p) > 0 {
		if len(p) < 4 {
			return nil, errors.New("the transcript ends in a message's length")
		}
		n := binary.BigEndian.Uint32(p)
		if uint64(n) > uint64(len(p)-4) || len(messages) >= 2*maxPairs {
			return nil, errors.New("the transcript is cut off or has too many messages")
		}
		messages = append(messages, p[4:4+n:4+n])
		p = p[4+n:]
	}
	if len(messages)%2 != 0 {
		return nil, errors.New("the transcript ends in a request")
	}
	return messages, nil
}
