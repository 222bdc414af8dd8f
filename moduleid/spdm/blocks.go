package spdm

import (
	"bytes"
	"fmt"

	"github.com/trusttree/trusttree/moduleid"
)

// kinds are the types of DMTF measurements.
var kinds = []string{"rom", "firmware", "hardware-config", "firmware-config", "manifest", "device-mode", "version", "svn"}

// parseBlocks reads a measurement record of DMTF blocks.
func parseBlocks(count int, record []byte) ([]moduleid.Measurement, error) {
	r := reader{p: record}
	var blocks []moduleid.Measurement
	for range count {
		index, spec, size := r.u8(), r.u8(), r.u16()
		b := reader{p: r.bytes(size)}
		kind := b.u8()
		value := b.bytes(b.u16())
		if r.bad || spec != 1 || b.end() != nil {
			return nil, fmt.Errorf("measurement block %d is malformed", len(blocks)+1)
		}
		name := fmt.Sprintf("type-%d", kind&0x7f)
		if int(kind&0x7f) < len(kinds) {
			name = kinds[kind&0x7f]
		}
		blocks = append(blocks, moduleid.Measurement{Index: int(index), Kind: name, Value: bytes.Clone(value)})
	}
	return blocks, r.end()
}
