package attest_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/attest/registry"
	"github.com/trusttree/trusttree/internal/tpm"
)

// T17: a node that falls silent is found, subscribers learn it at once, and it
// recovers by attesting.
func TestT17MissedDeadline(t *testing.T) {
	var mu sync.Mutex
	var heard []registry.State
	n, key, c, _ := enrolled(t, func(r *attest.RegistrarConfig, v *attest.VerifierConfig) {
		r.Devices = registry.Observe(r.Devices, func(d registry.Device) { mu.Lock(); heard = append(heard, d.State); mu.Unlock() })
		v.Devices = r.Devices
		v.ResultTTL = time.Minute
	})
	s := session(t, n, key)
	missed, err := c.verifier.Sweep(t.Context())
	require.NoError(t, err)
	assert.Empty(t, missed, "a node that was never appraised has no deadline")
	r, err := c.attest(n, s)
	require.NoError(t, err)
	assert.Equal(t, c.now.Add(time.Minute), r.Expires())
	c.now = c.now.Add(30 * time.Second)
	missed, err = c.verifier.Sweep(t.Context())
	require.NoError(t, err)
	assert.Empty(t, missed)
	c.now = c.now.Add(31 * time.Second)
	missed, err = c.verifier.Sweep(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []registry.DeviceID{n.Device()}, missed)
	missed, err = c.verifier.Sweep(t.Context())
	require.NoError(t, err)
	assert.Empty(t, missed, "found once")
	_, err = c.attest(n, s)
	require.NoError(t, err)
	require.NoError(t, c.registrar.Revoke(t.Context(), n.Device(), "stolen"))
	assert.Equal(t, []registry.State{registry.Enrolled, registry.Affirming, registry.Failing, registry.Affirming, registry.Revoked}, heard)
}

// T17: a certificate is renewed through fresh attestation only.
func TestT17Renewal(t *testing.T) {
	n, key, c, _ := enrolled(t)
	ctx := t.Context()
	csr, err := key.CSR()
	require.NoError(t, err)
	_, err = c.registrar.Renew(ctx, nil, csr)
	require.ErrorIs(t, err, attest.ErrExpired)
	_, err = c.registrar.Renew(ctx, &attest.Result{}, csr)
	require.ErrorIs(t, err, attest.ErrExpired, "a Result that no Verifier made")
	r, err := c.attest(n, session(t, n, key))
	require.NoError(t, err)
	c.now = c.now.Add(30 * time.Second)
	e, err := c.registrar.Renew(ctx, r, csr)
	require.NoError(t, err)
	assert.WithinDuration(t, c.now.Add(24*time.Hour), e.Expires, time.Second)
	require.NoError(t, n.StoreCertificate(ctx, e, c.roots()))
	soft, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	other, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, soft)
	require.NoError(t, err)
	_, err = c.registrar.Renew(ctx, r, other)
	require.ErrorIs(t, err, attest.ErrKeyMismatch)
	_, err = c.registrar.Renew(ctx, r, []byte("csr"))
	require.ErrorIs(t, err, attest.ErrMalformed)
	c.opinion = func(attest.Input) attest.Opinion { return attest.Opinion{Status: attest.StatusWarning} }
	_, err = c.attest(n, session(t, n, key))
	require.ErrorIs(t, err, attest.ErrNotAffirming)
	_, err = c.registrar.Renew(ctx, r, csr)
	require.ErrorIs(t, err, attest.ErrNotAffirming, "an older result does not outweigh a newer failure")
	require.NoError(t, c.registrar.Revoke(ctx, n.Device(), "stolen"))
	_, err = c.registrar.Renew(ctx, r, csr)
	require.ErrorIs(t, err, attest.ErrRevoked)
	require.ErrorIs(t, err, reason.Revoked)
	c.now = c.now.Add(10 * time.Minute)
	_, err = c.registrar.Renew(ctx, r, csr)
	require.ErrorIs(t, err, attest.ErrExpired)
}

// T18: a TPM whose state was restored, or a clone of it, is behind what the
// registry saw.
func TestT18RolledBackTPM(t *testing.T) {
	n, key, c, dev := enrolled(t)
	s := session(t, n, key)
	_, err := c.attest(n, s)
	require.NoError(t, err)
	for name, change := range map[reason.Code]func(*registry.Device){
		reason.Clock:        func(d *registry.Device) { d.Clock += 1 << 40 },
		reason.RestartCount: func(d *registry.Device) { d.RestartCount++ },
		reason.ResetCount:   func(d *registry.Device) { d.ResetCount++ },
	} {
		before, err := c.devices.Get(t.Context(), n.Device())
		require.NoError(t, err)
		ahead := before
		c.now = c.now.Add(time.Second)
		change(&ahead)
		_, err = c.devices.Put(t.Context(), ahead)
		require.NoError(t, err)
		_, err = c.attest(n, s)
		require.ErrorIs(t, err, attest.ErrRolledBack, name)
		require.ErrorIs(t, err, name)
		now, err := c.devices.Get(t.Context(), n.Device())
		require.NoError(t, err)
		assert.Equal(t, registry.Failing, now.State, name)
		before.Version = now.Version
		_, err = c.devices.Put(t.Context(), before)
		require.NoError(t, err)
	}
	_, err = c.attest(n, s)
	require.NoError(t, err)
	require.NoError(t, dev.Reboot(t.Context()))
	again := open(t, dev, attest.NodeConfig{EKName: n.EndorsementKey().Name})
	key2, err := again.DeviceKey(t.Context())
	require.NoError(t, err)
	_, err = c.attest(again, session(t, again, key2))
	require.NoError(t, err, "a reboot goes forward")
}

// Two challenges that are under way together may come back in any order.
func TestConcurrentChallengesOfOneNode(t *testing.T) {
	n, key, c, _ := enrolled(t)
	s := session(t, n, key)
	a, err := c.verifier.Challenge(t.Context(), s)
	require.NoError(t, err)
	b, err := c.verifier.Challenge(t.Context(), s)
	require.NoError(t, err)
	first, err := n.Evidence(t.Context(), s, a)
	require.NoError(t, err)
	time.Sleep(3 * time.Millisecond)
	second, err := n.Evidence(t.Context(), s, b)
	require.NoError(t, err)
	c.now = c.now.Add(time.Second)
	_, err = c.verifier.Appraise(t.Context(), s, second)
	require.NoError(t, err)
	_, err = c.verifier.Appraise(t.Context(), s, first)
	require.NoError(t, err)
}

// T8, T19: a cleared TPM keeps its identity, loses its TLS key, and comes back
// by the owner's explicit decision.
func TestT19ClearedTPMComesBack(t *testing.T) {
	n, key, c, dev := enrolled(t)
	ctx := t.Context()
	_, err := c.attest(n, session(t, n, key))
	require.NoError(t, err)
	_, err = tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}.Execute(dev)
	require.NoError(t, err)
	again := open(t, dev, attest.NodeConfig{EKName: n.EndorsementKey().Name})
	assert.Equal(t, n.Device(), again.Device())
	_, err = again.Certificate(ctx)
	require.ErrorIs(t, err, attest.ErrNoKey, "the node has to enrol anew, and knows")
	key2, err := again.DeviceKey(ctx)
	require.NoError(t, err)
	_, err = c.verifier.Challenge(ctx, session(t, again, key2))
	require.ErrorIs(t, err, attest.ErrKeyMismatch)
	c.enroll(again) // same attestation key: it survives TPM2_Clear
	_, err = c.attest(again, session(t, again, key2))
	require.ErrorIs(t, err, attest.ErrRolledBack, "clearing resets the counters: the owner must know")
	require.ErrorIs(t, c.registrar.Release(ctx, n.Device()), attest.ErrBound)
	require.NoError(t, c.registrar.Revoke(ctx, n.Device(), "cleared for repair"))
	require.NoError(t, c.registrar.Release(ctx, n.Device()))
	_, err = c.verifier.Challenge(ctx, session(t, again, key2))
	require.ErrorIs(t, err, attest.ErrRevoked, "released is not enrolled")
	c.enroll(again)
	_, err = c.attest(again, session(t, again, key2))
	require.NoError(t, err)
}

func TestTLSKeysOfAllKinds(t *testing.T) {
	for _, algorithm := range []string{"P-256", "P-384", "RSA-2048"} {
		t.Run(algorithm, func(t *testing.T) {
			dev, endorsers := newTPM(t)
			n := open(t, dev, attest.NodeConfig{Endorsers: endorsers, KeyAlgorithm: algorithm})
			c := newCloud(t, endorsers)
			key, _ := c.enroll(n)
			cert, err := n.Certificate(t.Context())
			require.NoError(t, err)
			assert.Equal(t, key.SignatureAlgorithms(), cert.SupportedSignatureAlgorithms)
			for _, scheme := range key.SignatureAlgorithms() { // at both ends at once
				for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
					one := cert
					one.SupportedSignatureAlgorithms = []tls.SignatureScheme{scheme}
					err := handshake(t, c, one, version)
					if version == tls.VersionTLS13 && slices.Contains([]tls.SignatureScheme{tls.PKCS1WithSHA256, tls.PKCS1WithSHA384, tls.PKCS1WithSHA512}, scheme) {
						require.Error(t, err, "TLS 1.3 has no PKCS #1 v1.5 signatures")
					} else {
						require.NoError(t, err, "%v in %s", scheme, tls.VersionName(version))
					}
				}
			}
			for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				require.NoError(t, handshake(t, c, cert, version))
			}
			if algorithm == "RSA-2048" {
				assert.Contains(t, key.SignatureAlgorithms(), tls.PSSWithSHA256, "swtpm's salt is as long as the hash")
			}
			other := map[string]string{"P-256": "P-384", "P-384": "RSA-2048", "RSA-2048": "P-256"}[algorithm]
			n2 := open(t, dev, attest.NodeConfig{Endorsers: endorsers, KeyAlgorithm: other})
			_, err = n2.DeviceKey(t.Context())
			require.ErrorContains(t, err, "KeyAlgorithm", "a key is never replaced silently")
			_, err = key.Sign(nil, make([]byte, 20), crypto.SHA1)
			require.Error(t, err)
			_, err = key.Sign(nil, make([]byte, 20), crypto.SHA256)
			require.Error(t, err)
		})
	}
	_, err := attest.Open(t.Context(), nil, attest.NodeConfig{EKName: []byte{1}, KeyAlgorithm: "DSA"})
	require.Error(t, err)
}

func handshake(t *testing.T, c *cloud, cert tls.Certificate, version uint16) error {
	conf := &tls.Config{
		Certificates: []tls.Certificate{cert}, RootCAs: c.roots(), ClientCAs: c.roots(), ClientAuth: tls.RequireAndVerifyClientCert,
		MinVersion: version, MaxVersion: version, InsecureSkipVerify: true, // no DNS name in a node's certificate; the client is what is tested
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	client, server := tls.Client(a, conf), tls.Server(b, conf)
	done := make(chan error, 1)
	go func() { done <- client.HandshakeContext(t.Context()) }()
	return errors.Join(server.HandshakeContext(t.Context()), <-done)
}

// T20: many goroutines share one TPM; a cancelled one stops waiting.
func TestT20SharedTPM(t *testing.T) {
	n, key, c, dev := enrolled(t)
	s := session(t, n, key)
	var wg sync.WaitGroup
	errs := make(chan error, 64)
	for range 4 {
		wg.Go(func() {
			for range 4 {
				d := sha256.Sum256([]byte("x"))
				_, err := key.Sign(nil, d[:], crypto.SHA256)
				errs <- err
				ch, err := c.verifier.Challenge(t.Context(), s)
				if err == nil {
					_, err = n.Evidence(t.Context(), s, ch)
				}
				errs <- err
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	require.NoError(t, tpm.Wrap(dev.Device).Do(t.Context(), func(*tpm.Device) error {
		cancel()
		ch, err := c.verifier.Challenge(t.Context(), s)
		require.NoError(t, err)
		_, err = n.Evidence(ctx, s, ch)
		require.ErrorIs(t, err, context.Canceled)
		return nil
	}))
}
