// Command barerelay is the least that crypto/tls needs to relay TCP over mutual
// TLS: a peer for benchmarks, and nothing else. It passes no end of file on.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"os"
)

func main() {
	mode, listen, target, ca, cert, key := os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5], os.Args[6]
	pem, err := os.ReadFile(ca)
	if err != nil {
		log.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		log.Fatal(err)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, ServerName: "localhost", SessionTicketsDisabled: true}
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		log.Fatal(err)
	}
	for {
		in, err := ln.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer in.Close()
			if mode == "server" {
				in = tls.Server(in, cfg)
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				return
			}
			defer out.Close()
			if mode == "client" {
				out = tls.Client(out, cfg)
			}
			done := make(chan struct{})
			go func() {
				_, _ = io.Copy(in, out)
				_ = in.(interface{ CloseWrite() error }).CloseWrite()
				close(done)
			}()
			_, _ = io.Copy(out, in)
			_ = out.(interface{ CloseWrite() error }).CloseWrite()
			<-done
		}()
	}
}
