package atecc_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"math/big"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/atecc"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
)

// Sixteen chips at the data sheet's longest times on one bus of 100 kHz that
// prove themselves again: pipelined, and one by one.
func BenchmarkSixteenChips(b *testing.B) {
	bus := moduleidtest.NewBus(100_000)
	host := atecc.NewHost(bus)
	var chips []*atecc.Chip
	for i := range 16 {
		addr := uint8(0x20 + i)
		bus.Plug(addr, certified(b, moduleidtest.DataSheet))
		chip, err := host.Chip(atecc.Config{Address: addr})
		require.NoError(b, err)
		chips = append(chips, chip)
	}
	prove := func(c *atecc.Chip) {
		if _, err := c.Prove(context.Background(), moduleid.NewChallenge("node", "bay")); err != nil {
			b.Error(err)
		}
	}
	all := func() {
		var wg sync.WaitGroup
		for _, c := range chips {
			wg.Go(func() { prove(c) })
		}
		wg.Wait()
	}
	all() // admission: configuration and certificates are read once
	b.Run("pipelined", func(b *testing.B) {
		for b.Loop() {
			all()
		}
	})
	b.Run("one-by-one", func(b *testing.B) {
		for b.Loop() {
			for _, c := range chips {
				prove(c)
			}
		}
	})
}

// The host's cost of one authentication, beside the bare verification of the
// same chain and signature.
func BenchmarkHostCost(b *testing.B) {
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(b, err)
	emulator, err := moduleidtest.NewATECC608(moduleidtest.Instant)
	require.NoError(b, err)
	cert, err := ca.Issue("module", emulator.PublicKey(), nil)
	require.NoError(b, err)
	require.NoError(b, emulator.Store(cert))
	bus := moduleidtest.NewBus(0)
	bus.Plug(0x60, emulator)
	chip, err := atecc.NewHost(bus).Chip(atecc.Config{})
	require.NoError(b, err)
	c := moduleid.NewChallenge("node", "bay")
	e, err := chip.Prove(b.Context(), c)
	require.NoError(b, err)
	v := &moduleid.Verifier{Schemes: []moduleid.Scheme{atecc.Scheme()}, Roots: ca.Pool(), UnsafeNoRevocations: true,
		Registry:   moduleid.Records{moduleid.ID(cert): {Class: "camera"}},
		Classes:    map[string]moduleid.Class{"camera": {}},
		Connectors: map[string]moduleid.Connector{"bay": {Classes: []string{"camera"}}}}
	b.Run("verifier", func(b *testing.B) {
		for b.Loop() {
			if _, err := v.Verify(c, e); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("bare", func(b *testing.B) {
		opts := x509.VerifyOptions{Roots: ca.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
		digest := c.Digest()
		for b.Loop() {
			leaf, err := x509.ParseCertificate(e.Chain[0])
			if err != nil {
				b.Fatal(err)
			}
			if _, err := leaf.Verify(opts); err != nil {
				b.Fatal(err)
			}
			if !ecdsa.Verify(leaf.PublicKey.(*ecdsa.PublicKey), digest[:], new(big.Int).SetBytes(e.Signature[:32]), new(big.Int).SetBytes(e.Signature[32:])) {
				b.Fatal("signature")
			}
		}
	})
}
