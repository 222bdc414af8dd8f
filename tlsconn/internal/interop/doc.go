// Package interop holds tests of the command examples/tunnel as processes,
// beside the programs that vendors use today: stunnel, openssl, curl and nginx.
package interop
