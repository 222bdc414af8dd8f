// Command tunnel relays TCP over mutual TLS, between a loopback port and a
// target, as stunnel and ghostunnel do: a server that unwraps, a client that
// wraps. Peers are known by the SPIFFE URI in their certificate.
//
//	tunnel server -listen :8443 -target 127.0.0.1:8080 -cacert ca.pem -cert s.pem -key s.key -allow-uri spiffe://city/node/*
//	tunnel client -listen 127.0.0.1:8080 -target gw:8443 -cacert ca.pem -cert c.pem -key c.key -allow-uri spiffe://city/gateway/1
//
// In plain mode each flow is one TLS connection, which stunnel, openssl, curl
// and nginx speak too. With -mux, flows share one tunnel. SIGHUP reloads
// certificates, CA, CRLs and policy, and what they no longer allow is cut;
// SIGTERM drains.
//
// Exit codes: 0 done, 1 failed, 2 usage, 3 refused by policy, 4 unavailable.
package main

import (
	"context"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/trusttree/trusttree/tlsconn"
)

// service is the name under which policies know the target.
const service = "target"

type options struct {
	server                    bool
	listen, target            string
	cacert, cert, key         string
	allow                     []string
	policy, crl, status       string
	crlState                  string
	mux, unsafeListen         bool
	requirePQ, tls12, verbose bool
	drain                     time.Duration
	handshakes                int
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	os.Exit(run(ctx, hup, os.Args[1:], os.Stderr))
}

func run(ctx context.Context, hup <-chan os.Signal, args []string, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "tunnel:", err)
		return 2
	}
	level := slog.LevelInfo
	if !o.verbose {
		level = slog.LevelWarn
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	if err := serve(ctx, hup, o, log); err != nil {
		fmt.Fprintln(stderr, "tunnel:", err)
		switch {
		case errors.Is(err, tlsconn.ErrDenied), errors.Is(err, tlsconn.ErrUntrusted), errors.Is(err, tlsconn.ErrRevoked), errors.Is(err, tlsconn.ErrExpired):
			return 3
		case errors.Is(err, tlsconn.ErrUnavailable):
			return 4
		}
		return 1
	}
	return 0
}

const usage = `usage: tunnel server|client -listen ADDR -target ADDR -cacert FILE -cert FILE -key FILE -allow-uri PATTERN [flags]`

func parse(args []string, stderr io.Writer) (*options, error) {
	if len(args) == 0 || args[0] != "server" && args[0] != "client" {
		if len(args) > 0 && (args[0] == "-h" || args[0] == "-help" || args[0] == "--help") {
			fmt.Fprintln(stderr, usage)
			return nil, flag.ErrHelp
		}
		return nil, errors.New("first argument must be server or client\n" + usage)
	}
	o := &options{server: args[0] == "server"}
	f := flag.NewFlagSet("tunnel "+args[0], flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.listen, "listen", "", "`address` to listen on; a client's must be loopback")
	f.StringVar(&o.target, "target", "", "`address` to connect to; a server's must be loopback")
	f.StringVar(&o.cacert, "cacert", "", "PEM `file` with the CA certificates that peers chain to")
	f.StringVar(&o.cert, "cert", "", "PEM `file` with this end's certificate and intermediates")
	f.StringVar(&o.key, "key", "", "PEM `file` with this end's private key")
	f.Func("allow-uri", "SPIFFE `pattern` of peers to admit: an ID, or with * for a segment; may be repeated", func(s string) error {
		o.allow = append(o.allow, s)
		return nil
	})
	f.StringVar(&o.policy, "policy", "", "policy `file`; the target is the service \""+service+"\" (default: all admitted peers)")
	f.StringVar(&o.crl, "crl", "", "`file` with CRLs, PEM or DER; then every issuer needs one")
	f.StringVar(&o.crlState, "crl-state", "", "`directory` that remembers the newest CRLs over restarts, so that older ones stay refused")
	f.StringVar(&o.status, "status", "", "loopback `address` for /_status and /metrics")
	f.BoolVar(&o.mux, "mux", false, "multiplex flows over one tunnel")
	f.BoolVar(&o.unsafeListen, "unsafe-addresses", false, "allow plain text beyond loopback")
	f.BoolVar(&o.requirePQ, "require-pq", false, "refuse peers without post-quantum key exchange")
	f.BoolVar(&o.tls12, "insecure-tls12", false, "plain mode: accept TLS 1.2")
	f.BoolVar(&o.verbose, "v", false, "log every flow")
	f.DurationVar(&o.drain, "drain", 30*time.Second, "how long SIGTERM waits for live flows")
	f.IntVar(&o.handshakes, "handshakes-per-ip", 10000, "new connections a second from one address")
	if err := f.Parse(args[1:]); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	for _, r := range []struct{ name, value string }{{"listen", o.listen}, {"target", o.target}, {"cacert", o.cacert}, {"cert", o.cert}, {"key", o.key}, {"allow-uri", strings.Join(o.allow, "")}} {
		if r.value == "" {
			return nil, fmt.Errorf("-%s is required\n%s", r.name, usage)
		}
	}
	plain := o.target
	if !o.server {
		plain = o.listen
	}
	for _, a := range []string{plain, o.status} {
		if a != "" && !o.unsafeListen && !isLoopback(a) {
			return nil, fmt.Errorf("%s is not a loopback address: plain text would leave this host (-unsafe-addresses allows it)", a)
		}
	}
	return o, nil
}

func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// keepAlive is off for loopback, where nothing is lost without a word.
func keepAlive(address string) time.Duration {
	if isLoopback(address) {
		return -1
	}
	return 0
}

// tunnel is what both modes share: the configuration, which SIGHUP reloads in
// place, and what is counted.
type tunnel struct {
	o   *options
	log *slog.Logger
	cfg tlsconn.Config
	m   *metrics

	dialer net.Dialer // of the target

	roots []*x509.Certificate // in force
}

func serve(ctx context.Context, hup <-chan os.Signal, o *options, log *slog.Logger) error {
	if !o.mux {
		// A heap of TLS connections is small and short-lived: collect it sooner, so
		// that a thousand idle ones fit a small node.
		debug.SetGCPercent(40)
	}
	t := &tunnel{o: o, log: log, m: newMetrics(), dialer: net.Dialer{Timeout: 10 * time.Second, KeepAlive: keepAlive(o.target)}}
	if err := t.load(); err != nil {
		return err
	}
	ln, err := (&net.ListenConfig{KeepAlive: keepAlive(o.listen)}).Listen(ctx, "tcp", o.listen)
	if err != nil {
		return fmt.Errorf("%w: %w", tlsconn.ErrUnavailable, err)
	}
	defer ln.Close()
	if o.status != "" {
		stop, err := t.serveStatus()
		if err != nil {
			return err
		}
		defer stop()
	}
	go func() {
		for {
			select {
			case <-hup:
				if err := t.reload(); err != nil {
					log.Error("reload failed, the old configuration stays", "event", "reload.failed", "error", err)
					t.m.reloads.WithLabelValues("failed").Inc()
					continue
				}
				t.m.reloads.WithLabelValues("ok").Inc()
				log.Warn("reloaded", "event", "reload.done")
			case <-ctx.Done():
				return
			}
		}
	}()
	log.Warn("listening", "event", "tunnel.listening", "address", ln.Addr().String(), "identity", t.cfg.Identity.ID().String(), "mux", o.mux)
	switch {
	case !o.mux:
		return t.plain(ctx, ln)
	case o.server:
		return t.gateway(ctx, ln)
	}
	return t.client(ctx, ln)
}
