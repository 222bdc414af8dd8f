package ear

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// MediaType is the media type of the tokens that Sign makes.
const MediaType = "application/eat+cwt"

// resultBit says in a CMW that it carries Attestation Results.
const resultBit = 1 << 3

// Wrap puts a token of Sign into a CMW record (draft-ietf-rats-msg-wrap,
// section 3.1) in CBOR: an array of media type, value and indicator.
func Wrap(token []byte) ([]byte, error) {
	if len(token) == 0 || len(token) > MaxSize {
		return nil, fmt.Errorf("%w: token of %d bytes, want 1 to %d", ErrMalformed, len(token), MaxSize)
	}
	return cbor.Marshal([]any{MediaType, token, uint64(resultBit)})
}

// WrapJSON is Wrap with the record in JSON.
func WrapJSON(token []byte) ([]byte, error) {
	if len(token) == 0 || len(token) > MaxSize {
		return nil, fmt.Errorf("%w: token of %d bytes, want 1 to %d", ErrMalformed, len(token), MaxSize)
	}
	return json.Marshal([]any{MediaType, base64.RawURLEncoding.EncodeToString(token), resultBit})
}

// Unwrap takes the token out of a CMW record in CBOR or JSON, for Verify.
// Nothing is verified. A record of another type, or one that says it carries
// something else than Attestation Results, is ErrMalformed; the indicator may
// be missing.
func Unwrap(record []byte) ([]byte, error) {
	if len(record) > 2*MaxSize {
		return nil, fmt.Errorf("%w: record of %d bytes, limit %d", ErrMalformed, len(record), 2*MaxSize)
	}
	var kind string
	var token []byte
	indicator := uint64(resultBit)
	var err error
	if len(record) > 0 && record[0] == '[' {
		kind, token, err = unwrapJSON(record, &indicator)
	} else {
		kind, token, err = unwrapCBOR(record, &indicator)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: CMW record: %w", ErrMalformed, err)
	case kind != MediaType:
		return nil, fmt.Errorf("%w: CMW record of type %q, want %q", ErrMalformed, kind, MediaType)
	case indicator != resultBit:
		return nil, fmt.Errorf("%w: CMW record with indicator %d, want %d for Attestation Results", ErrMalformed, indicator, resultBit)
	case len(token) == 0 || len(token) > MaxSize:
		return nil, fmt.Errorf("%w: token of %d bytes, want 1 to %d", ErrMalformed, len(token), MaxSize)
	}
	return token, nil
}

var errShape = errors.New("not an array of type, value and indicator")

func unwrapCBOR(record []byte, indicator *uint64) (kind string, token []byte, err error) {
	mode, err := cbor.DecOptions{IndefLength: cbor.IndefLengthForbidden, MaxNestedLevels: 4, MaxArrayElements: 16, MaxMapPairs: 16, TagsMd: cbor.TagsForbidden}.DecMode()
	if err != nil {
		return "", nil, err
	}
	var list []cbor.RawMessage
	if err := mode.Unmarshal(record, &list); err != nil {
		return "", nil, err
	}
	if len(list) != 2 && len(list) != 3 {
		return "", nil, errShape
	}
	err = errors.Join(mode.Unmarshal(list[0], &kind), mode.Unmarshal(list[1], &token))
	if len(list) == 3 {
		err = errors.Join(err, mode.Unmarshal(list[2], indicator))
	}
	return kind, token, err
}

func unwrapJSON(record []byte, indicator *uint64) (kind string, token []byte, err error) {
	var list []json.RawMessage
	if err := json.Unmarshal(record, &list); err != nil {
		return "", nil, err
	}
	if len(list) != 2 && len(list) != 3 {
		return "", nil, errShape
	}
	var text string
	err = errors.Join(json.Unmarshal(list[0], &kind), json.Unmarshal(list[1], &text))
	if len(list) == 3 {
		err = errors.Join(err, json.Unmarshal(list[2], indicator))
	}
	if err == nil {
		token, err = base64.RawURLEncoding.Strict().DecodeString(text)
	}
	return kind, token, err
}
