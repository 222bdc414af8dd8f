package spdm

import (
	"context"
	"errors"
	"fmt"
)

// mctpType is the message type of SPDM over MCTP (DMTF DSP0275).
const mctpType = 5

// MCTP returns a transport over a channel that carries whole MCTP messages,
// such as an own binding to I2C or a serial line: each begins with the byte of
// its message type. Send and receive honour ctx; receive returns the next
// message from the responder, and errors end the exchange.
func MCTP(send func(ctx context.Context, message []byte) error, receive func(ctx context.Context) ([]byte, error), closer func() error) Transport {
	return &mctp{send, receive, closer}
}

type mctp struct {
	send    func(context.Context, []byte) error
	receive func(context.Context) ([]byte, error)
	closer  func() error
}

// maxForeign bounds messages of other types in between.
const maxForeign = 16

func (m *mctp) Exchange(ctx context.Context, req []byte) ([]byte, error) {
	if err := m.send(ctx, append([]byte{mctpType}, req...)); err != nil {
		return nil, err
	}
	for range maxForeign {
		p, err := m.receive(ctx)
		if err != nil {
			return nil, err
		}
		if len(p) > maxFrame {
			return nil, fmt.Errorf("an MCTP message of %d bytes", len(p))
		}
		if len(p) > 0 && p[0]&0x7f == mctpType {
			return p[1:], nil
		}
	}
	return nil, errors.New("MCTP messages of other types, and no answer")
}

func (m *mctp) Close() error {
	if m.closer == nil {
		return nil
	}
	return m.closer()
}
