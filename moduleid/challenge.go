package moduleid

import (
	"crypto"
	"crypto/rand"
	_ "crypto/sha256" // the digest of every challenge
	_ "crypto/sha512" // the larger PCR banks
	"encoding/binary"
	"fmt"
	"strings"
)

// Limits of names and contexts, in bytes.
const (
	maxName    = 128
	maxContext = 1024
)

// Challenge is what one chip must answer: a fresh nonce, and the place it is
// asked in. A Challenge is used once.
type Challenge struct {
	Nonce     [32]byte // fresh for every attempt
	Node      string   // the node's name, 1 to 128 bytes
	Connector string   // the connector's name on that node, 1 to 128 bytes
	Context   []byte   // more to bind, such as a session's exporter; at most 1024 bytes
}

// NewChallenge returns a challenge with a nonce from crypto/rand.
func NewChallenge(node, connector string) Challenge {
	c := Challenge{Node: node, Connector: connector}
	rand.Read(c.Nonce[:]) // never fails: it ends the program instead
	return c
}

// ChallengeFor returns the challenge that a verifier's nonce means for one
// connector, so that one nonce reaches every module of a node and no answer
// fits two connectors. The nonce has 16 to 64 bytes; a shorter or longer one
// gives a challenge that Validate refuses.
func ChallengeFor(nonce []byte, node, connector string) Challenge {
	c := Challenge{Node: node, Connector: connector}
	if len(nonce) >= minNonce && len(nonce) <= maxNonce {
		copy(c.Nonce[:], hashFields(crypto.SHA256, labelNonce, nonce))
	}
	return c
}

const (
	minNonce = 16
	maxNonce = 64
)

// Labels of every digest made here: no two purposes share one.
const (
	labelChallenge = "moduleid.v1\x00challenge"
	labelNonce     = "moduleid.v1\x00nonce"
	labelInventory = "moduleid.v1\x00inventory"
)

// Validate reports what keeps the challenge from being asked: a zero nonce, or
// names that are empty, too long or not printable.
func (c Challenge) Validate() error {
	if c.Nonce == [32]byte{} {
		return fmt.Errorf("moduleid: the challenge has no nonce; use NewChallenge, or ChallengeFor with %d to %d bytes", minNonce, maxNonce)
	}
	if err := checkName("node", c.Node); err != nil {
		return err
	}
	if err := checkName("connector", c.Connector); err != nil {
		return err
	}
	if len(c.Context) > maxContext {
		return fmt.Errorf("moduleid: the challenge's context has %d bytes; the limit is %d", len(c.Context), maxContext)
	}
	return nil
}

func checkName(what, s string) error {
	if s == "" || len(s) > maxName {
		return fmt.Errorf("moduleid: the %s name has %d bytes; it needs 1 to %d", what, len(s), maxName)
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < 0x21 || r > 0x7e }) {
		return fmt.Errorf("moduleid: the %s name %q has a character outside printable ASCII", what, s)
	}
	return nil
}

// Digest returns the 32 bytes that a chip signs, directly or inside its own
// protocol: SHA-256 over the label "moduleid.v1", a zero byte, "challenge",
// and the nonce, node, connector and context, each after its length as a
// 32-bit big-endian integer. No other protocol signs such a digest, and no
// field can slide into its neighbour. testdata/challenge.json has vectors.
func (c Challenge) Digest() [32]byte {
	return [32]byte(hashFields(crypto.SHA256, labelChallenge, c.Nonce[:], []byte(c.Node), []byte(c.Connector), c.Context))
}

// hashFields hashes a label and length-prefixed fields.
func hashFields(h crypto.Hash, label string, fields ...[]byte) []byte {
	w := h.New()
	w.Write([]byte(label))
	for _, f := range fields {
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], uint32(len(f)))
		w.Write(n[:])
		w.Write(f)
	}
	return w.Sum(nil)
}
