package softtpm_test

import (
	"runtime"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/softtpm"
	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

// TestManyTPMsInOneProcess makes TPMs with P-256 EK certificates and uses each:
// 10,000 of them with TRUSTTREE_LONG=1.
func TestManyTPMsInOneProcess(t *testing.T) {
	m, err := softtpm.NewMaker()
	require.NoError(t, err)
	n := testenv.N(500, 10000)
	before := heap()
	tpms := make([]*softtpm.TPM, n)
	for i := range tpms {
		tpms[i], err = softtpm.New(softtpm.Config{Maker: m})
		require.NoError(t, err)
		startup(t, tpms[i])
	}
	each := (heap() - before) / uint64(n)
	t.Logf("%d TPMs, %d bytes of heap each", n, each)
	require.Less(t, each, uint64(256<<10))
	seen := map[string]bool{}
	for _, d := range tpms {
		k, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tpm2.ECCEKTemplate)}.Execute(d)
		require.NoError(t, err)
		require.False(t, seen[string(k.Name.Buffer)], "each has its own keys")
		seen[string(k.Name.Buffer)] = true
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkNew makes a TPM with a P-256 EK certificate and starts it.
func BenchmarkNew(b *testing.B) {
	b.Run("softtpm", func(b *testing.B) {
		m, err := softtpm.NewMaker()
		require.NoError(b, err)
		b.ReportAllocs()
		for b.Loop() {
			t, err := softtpm.New(softtpm.Config{Maker: m})
			require.NoError(b, err)
			startup(b, t)
		}
	})
	b.Run("swtpm", func(b *testing.B) {
		testenv.Tool(b, "swtpm_setup", "swtpm-tools")
		m, err := tpmtest.NewMaker(b.TempDir())
		require.NoError(b, err)
		for b.Loop() {
			t, err := m.NewTPM(b.Context())
			require.NoError(b, err)
			require.NoError(b, t.PowerOff())
		}
	})
}

// onBoth runs a benchmark on this TPM and on swtpm.
func onBoth(b *testing.B, f func(b *testing.B, t transport.TPM)) {
	b.Run("softtpm", func(b *testing.B) {
		t, err := softtpm.New(softtpm.Config{})
		require.NoError(b, err)
		startup(b, t)
		f(b, t)
	})
	b.Run("swtpm", func(b *testing.B) {
		testenv.Tool(b, "swtpm", "swtpm")
		t, err := tpmtest.Start(b.Context(), b.TempDir())
		require.NoError(b, err)
		defer t.PowerOff()
		f(b, t)
	})
}

func BenchmarkQuoteP256(b *testing.B) {
	onBoth(b, func(b *testing.B, t transport.TPM) {
		k := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHEndorsement, ""), InPublic: tpm2.New2B(signTemplate(true))}, t)
		for b.Loop() {
			_, err := tpm2.Quote{SignHandle: named(k.ObjectHandle, k.Name, tpm2.PasswordAuth(nil)), QualifyingData: tpm2.TPM2BData{Buffer: sha("nonce")},
				InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: selection(0, 1, 2, 3, 4, 5, 6, 7)}.Execute(t)
			require.NoError(b, err)
		}
	})
}

func BenchmarkCreatePrimaryP256(b *testing.B) {
	onBoth(b, func(b *testing.B, t transport.TPM) {
		for b.Loop() {
			k, err := tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(t)
			require.NoError(b, err)
			flush(t, k.ObjectHandle)
		}
	})
}

// BenchmarkUnseal loads and unseals through a salted, encrypted session.
func BenchmarkUnseal(b *testing.B) {
	onBoth(b, func(b *testing.B, t transport.TPM) {
		p := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}, t)
		pub, err := p.OutPublic.Contents()
		require.NoError(b, err)
		parent := named(p.ObjectHandle, p.Name, tpm2.PasswordAuth(nil))
		c := try(tpm2.Create{ParentHandle: parent, InSensitive: sensitive("pw", "sealed"), InPublic: tpm2.New2B(sealTemplate(fixed, nil))}, t)
		for b.Loop() {
			l, err := tpm2.Load{ParentHandle: parent, InPrivate: c.OutPrivate, InPublic: c.OutPublic}.Execute(t)
			require.NoError(b, err)
			s := tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Auth([]byte("pw")), tpm2.Salted(p.ObjectHandle, *pub), tpm2.AESEncryption(128, tpm2.EncryptOut))
			_, err = tpm2.Unseal{ItemHandle: named(l.ObjectHandle, l.Name, s)}.Execute(t)
			require.NoError(b, err)
			flush(t, l.ObjectHandle)
		}
	})
}

func BenchmarkPCRExtend(b *testing.B) {
	onBoth(b, func(b *testing.B, t transport.TPM) {
		for b.Loop() {
			_, err := tpm2.PCRExtend{PCRHandle: password(10, ""), Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: sha("a")}}}}.Execute(t)
			require.NoError(b, err)
		}
	})
}
