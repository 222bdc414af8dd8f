package delta

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

const (
	patchMagic = "ttpatch1"
	// Segment is how much content one zstd frame of a patch makes.
	Segment = 4 << 20
	// around is how much of the base before and after a segment its frame
	// may refer to.
	around = 2 << 20
	// PatchMemory is about how much memory applying a patch takes.
	PatchMemory = 32 << 20
	dictID      = 1
)

// window returns which part of the base is the dictionary of segment i.
func window(i int64, base int64) (off, n int64) {
	off = max(0, min(i*Segment-around, base))
	return off, min(i*Segment+Segment+around, base) - off
}

func dictionary(base io.ReaderAt, size, i int64) ([]byte, error) {
	off, n := window(i, size)
	if n < 8 {
		return nil, nil
	}
	d := make([]byte, n)
	if _, err := base.ReadAt(d, off); err != nil && err != io.EOF {
		return nil, err
	}
	return d, nil
}

// WritePatch writes a patch that makes content out of base.
func WritePatch(w io.Writer, base io.ReaderAt, baseSize int64, content io.Reader, length int64) error {
	head := binary.BigEndian.AppendUint64([]byte(patchMagic), uint64(baseSize))
	if _, err := w.Write(binary.BigEndian.AppendUint64(head, uint64(length))); err != nil {
		return err
	}
	buf := make([]byte, Segment)
	for i := int64(0); i*Segment < length; i++ {
		seg := buf[:min(Segment, length-i*Segment)]
		if _, err := io.ReadFull(content, seg); err != nil {
			return err
		}
		dict, err := dictionary(base, baseSize, i)
		if err != nil {
			return err
		}
		opts := []zstd.EOption{zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(16 << 20), zstd.WithEncoderCRC(false)}
		if dict != nil {
			opts = append(opts, zstd.WithEncoderDictRaw(dictID, dict))
		}
		enc, err := zstd.NewWriter(nil, opts...)
		if err != nil {
			return err
		}
		frame := enc.EncodeAll(seg, nil)
		if err := enc.Close(); err != nil {
			return err
		}
		if _, err := w.Write(binary.BigEndian.AppendUint32(nil, uint32(len(frame)))); err != nil {
			return err
		}
		if _, err := w.Write(frame); err != nil {
			return err
		}
	}
	return nil
}

// ApplyPatch hands the content that a patch makes out of base to write, segment
// by segment. patch is read once, from its start. Nothing is verified here but
// the bounds.
func ApplyPatch(patch io.Reader, base io.ReaderAt, baseSize, length int64, write func(p []byte, off int64) error) error {
	head := make([]byte, 24)
	if _, err := io.ReadFull(patch, head); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	from := int64(binary.BigEndian.Uint64(head[8:]))
	if string(head[:8]) != patchMagic || from < 0 || from > baseSize || binary.BigEndian.Uint64(head[16:]) != uint64(length) {
		return fmt.Errorf("%w: patch is for other content", ErrFormat)
	}
	var frame, out []byte
	for i := int64(0); i*Segment < length; i++ {
		want := min(Segment, length-i*Segment)
		var size [4]byte
		if _, err := io.ReadFull(patch, size[:]); err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
		n := binary.BigEndian.Uint32(size[:])
		if n > Segment+Segment/8+1024 {
			return fmt.Errorf("%w: frame of %d bytes", ErrFormat, n)
		}
		if cap(frame) < int(n) {
			frame = make([]byte, n)
		}
		frame = frame[:n]
		if _, err := io.ReadFull(patch, frame); err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
		dict, err := dictionary(base, from, i)
		if err != nil {
			return err
		}
		opts := []zstd.DOption{zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(Segment), zstd.WithDecoderMaxWindow(16 << 20), zstd.WithDecoderLowmem(true)}
		if dict != nil {
			opts = append(opts, zstd.WithDecoderDictRaw(dictID, dict))
		}
		dec, err := zstd.NewReader(nil, opts...)
		if err != nil {
			return err
		}
		out, err = dec.DecodeAll(frame, out[:0])
		dec.Close()
		if err != nil || int64(len(out)) != want {
			return fmt.Errorf("%w: segment %d makes %d bytes, want %d: %w", ErrFormat, i, len(out), want, orFormat(err))
		}
		if err := write(out, i*Segment); err != nil {
			return err
		}
	}
	return nil
}

func orFormat(err error) error {
	if err == nil {
		return ErrFormat
	}
	return err
}

// PatchFrom returns the length of the base that a patch starts from.
func PatchFrom(head []byte) (int64, error) {
	if len(head) < 24 || string(head[:8]) != patchMagic {
		return 0, fmt.Errorf("%w: no patch", ErrFormat)
	}
	from := int64(binary.BigEndian.Uint64(head[8:]))
	if from < 0 {
		return 0, fmt.Errorf("%w: base of %d bytes", ErrFormat, from)
	}
	return from, nil
}
