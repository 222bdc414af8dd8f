package main

import (
	"context"
	"net"

	"github.com/trusttree/trusttree/tlsconn"
)

// plain relays each connection over a TLS connection of its own.
func (t *tunnel) plain(ctx context.Context, ln net.Listener) error {
	return t.cfg.ServePlain(ctx, ln, tlsconn.PlainOptions{Server: t.o.server, Service: service, Drain: t.o.drain,
		Dial: func(ctx context.Context) (net.Conn, error) { return t.dialer.DialContext(ctx, "tcp", t.o.target) },
		Live: func(n int) { t.m.live.Set(float64(n)) }})
}
