package attest_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	attestation "github.com/google/go-attestation/attest"
	"github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

// TestMain lets the test binary be the command through which tpm2-tools reach
// a TPM's socket (TSS 2.0 tcti-cmd), and the verifier process of TestFleet.
func TestMain(m *testing.M) {
	if socket := os.Getenv("ATTEST_TEST_TCTI_SOCKET"); socket != "" {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			os.Exit(1)
		}
		go func() { _, _ = io.Copy(conn, os.Stdin); _ = conn.(*net.UnixConn).CloseWrite() }()
		_, _ = io.Copy(os.Stdout, conn)
		os.Exit(0)
	}
	if dir := os.Getenv("ATTEST_TEST_FLEET"); dir != "" {
		if err := serveFleet(dir); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// go-attestation's attester, both kinds of key, enrols with our registrar, and
// its quotes verify.
func TestGoAttestationAttesterWithOurVerifier(t *testing.T) {
	dev, endorsers := newTPM(t)
	c := newCloud(t, endorsers)
	theirs, err := attestation.OpenTPM(&attestation.OpenConfig{CommandChannel: tpm.NewChannel(dev.Device, nil)})
	require.NoError(t, err)
	eks, err := theirs.EKs()
	require.NoError(t, err)
	for name, algorithm := range map[string]attestation.Algorithm{"ECDSA": attestation.ECDSA, "RSA": attestation.RSA} {
		ak, err := theirs.NewAK(&attestation.AKConfig{Algorithm: algorithm})
		require.NoError(t, err)
		params := ak.AttestationParameters()
		req := &attest.EnrollmentRequest{Version: 1, EKCertificates: [][]byte{eks[0].Certificate.Raw}, AKPublic: params.Public}
		ch, err := c.registrar.Begin(t.Context(), over(t, req))
		require.NoError(t, err, name)
		secret, err := ak.ActivateCredential(theirs, attestation.EncryptedCredential{
			Credential: tpm2.Marshal(tpm2.TPM2BIDObject{Buffer: ch.Credential}), Secret: tpm2.Marshal(tpm2.TPM2BEncryptedSecret{Buffer: ch.Secret}),
		})
		require.NoError(t, err, name)

		index := []int{0, 7, 13}
		nonce := sha256.Sum256([]byte(name))
		q, err := ak.QuotePCRs(theirs, nonce[:], attestation.HashSHA256, index)
		require.NoError(t, err)
		values, err := tpm.ReadPCRs(dev, crypto.SHA256, index...)
		require.NoError(t, err)
		key, err := quote.ParseKey(params.Public)
		require.NoError(t, err)
		flat := bytes.Join([][]byte{values[0], values[7], values[13]}, nil)
		sel := []quote.Selection{{Bank: crypto.SHA256, PCRs: index}}
		_, err = key.VerifyQuote(q.Quote, q.Signature, flat, sel, nonce[:])
		require.NoError(t, err, name)

		// its key, certified with a nonce of ours
		k, err := theirs.NewKey(ak, &attestation.KeyConfig{Algorithm: attestation.ECDSA, Size: 256, QualifyingData: nonce[:]})
		require.NoError(t, err)
		priv, err := k.Private(k.Public())
		require.NoError(t, err)
		csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, priv)
		require.NoError(t, err)
		made := k.CertificationParameters()
		got, err := key.VerifyCertify(made.CreateAttestation, made.CreateSignature, made.Public, nonce[:])
		require.NoError(t, err)
		assert.Equal(t, k.Public(), got)
		require.NoError(t, k.Close())
		_, err = c.registrar.Complete(t.Context(), &attest.ActivationResponse{
			Version: 1, ID: ch.ID, Secret: secret, KeyPublic: params.Public, Certify: q.Quote, Signature: q.Signature, CSR: csr,
		})
		require.ErrorIs(t, err, quote.ErrMalformed, "a quote in place of a certification")
		require.NoError(t, ak.Close(theirs))
		c = newCloud(t, endorsers)
	}
}

// Our node's evidence verifies with go-attestation, and our node opens a
// credential that go-attestation made for it.
func TestOurNodeWithGoAttestationVerifier(t *testing.T) {
	dev, endorsers := newTPM(t)
	n := open(t, dev, attest.NodeConfig{Endorsers: endorsers})
	c := newCloud(t, endorsers)
	key, _ := c.enroll(n)
	s := session(t, n, key)
	ch, err := c.verifier.Challenge(t.Context(), s)
	require.NoError(t, err)
	e, err := n.Evidence(t.Context(), s, ch)
	require.NoError(t, err)
	pub, err := attestation.ParseAKPublic(n.EnrollmentRequest(nil).AKPublic)
	require.NoError(t, err)
	var pcrs []attestation.PCR
	for i, p := range ch.PCRs[0].PCRs {
		pcrs = append(pcrs, attestation.PCR{Index: p, Digest: e.PCRValues[32*i : 32*i+32], DigestAlg: crypto.SHA256})
	}
	_, qualifying := attest.Binding(s, ch.Nonce, s.Binding[:], e.Bodies)
	require.NoError(t, pub.VerifyAll([]attestation.Quote{{Quote: e.Quote, Signature: e.Signature}}, pcrs, qualifying))

	created, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(attest.AKTemplate())}.Execute(dev)
	require.NoError(t, err)
	certified, err := tpm2.CertifyCreation{
		SignHandle:   tpm2.AuthHandle{Handle: created.ObjectHandle, Name: created.Name, Auth: tpm2.PasswordAuth(nil)},
		ObjectHandle: tpm2.NamedHandle{Handle: created.ObjectHandle, Name: created.Name},
		CreationHash: created.CreationHash, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, CreationTicket: created.CreationTicket,
	}.Execute(dev)
	require.NoError(t, err)
	require.NoError(t, tpm.Flush(dev, created.ObjectHandle))
	keys, err := n.EndorsementKeys(t.Context())
	require.NoError(t, err)
	for _, ek := range keys {
		params := attestation.ActivationParameters{EK: ek.Certificate.PublicKey, AK: attestation.AttestationParameters{
			Public: n.EnrollmentRequest(nil).AKPublic, CreateData: created.CreationData.Bytes(),
			CreateAttestation: certified.CertifyInfo.Bytes(), CreateSignature: tpm2.Marshal(certified.Signature),
		}}
		if ek.Template != "L-1" {
			continue // go-attestation knows the low range only: it makes credentials that no P-384 key opens
		}
		secret, credential, err := params.Generate()
		require.NoError(t, err)
		pinned := open(t, dev, attest.NodeConfig{EKName: ek.Name})
		rsp, err := pinned.Activate(t.Context(), &attest.ActivationChallenge{
			Version: 1, ID: "x", Device: pinned.Device(), Nonce: make([]byte, 32), Credential: credential.Credential[2:], Secret: credential.Secret[2:],
		}, key)
		require.NoError(t, err)
		assert.Equal(t, secret, rsp.Secret)
	}
}

// tools runs tpm2-tools against a TPM that nobody else is the client of.
type tools struct {
	t   *testing.T
	dir string
	dev *tpmtest.TPM
}

func newTools(t *testing.T, dev *tpmtest.TPM) *tools {
	testenv.Tool(t, "tpm2_quote", "tpm2-tools")
	return &tools{t, t.TempDir(), dev}
}

func (x *tools) run(name string, args ...string) {
	x.t.Helper()
	self, err := os.Executable()
	require.NoError(x.t, err)
	require.NoError(x.t, x.dev.Detach())
	cmd := exec.CommandContext(x.t.Context(), name, args...)
	cmd.Dir = x.dir
	cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI=cmd:"+self, "ATTEST_TEST_TCTI_SOCKET="+x.dev.Socket)
	out, err := cmd.CombinedOutput()
	require.NoError(x.t, err, "%s: %s", name, out)
	d, err := tpm.Open(context.WithoutCancel(x.t.Context()), "unix:"+x.dev.Socket)
	require.NoError(x.t, err)
	x.dev.Device = d
	left, err := tpm.LoadedHandles(x.dev) // the tools count on a resource manager to flush
	require.NoError(x.t, err)
	for _, h := range left.Transient {
		require.NoError(x.t, tpm.Flush(x.dev, h))
	}
}

func (x *tools) read(name string) []byte {
	x.t.Helper()
	b, err := os.ReadFile(filepath.Join(x.dir, name))
	require.NoError(x.t, err)
	return b
}

func (x *tools) write(name string, b []byte) {
	x.t.Helper()
	require.NoError(x.t, os.WriteFile(filepath.Join(x.dir, name), b, 0o600))
}

// tpm2-tools' quotes and credentials with ours, ours with theirs.
func TestTPM2ToolsInterop(t *testing.T) {
	dev, m := tpmtest.NewSwtpm(t)
	endorsers := attest.Endorsers{Anchors: []*x509.Certificate{m.Root}, Intermediates: m.Intermediates}
	n := open(t, dev, attest.NodeConfig{Endorsers: endorsers})
	c := newCloud(t, endorsers)
	key, _ := c.enroll(n)
	s := session(t, n, key)
	ch, err := c.verifier.Challenge(t.Context(), s)
	require.NoError(t, err)
	e, err := n.Evidence(t.Context(), s, ch)
	require.NoError(t, err)
	ak, err := quote.ParseKey(n.EnrollmentRequest(nil).AKPublic)
	require.NoError(t, err)
	keys, err := n.EndorsementKeys(t.Context())
	require.NoError(t, err)
	x := newTools(t, dev)

	// our quote, checked by tpm2_checkquote
	der, err := x509.MarshalPKIXPublicKey(ak.Public())
	require.NoError(t, err)
	_, qualifying := attest.Binding(s, ch.Nonce, s.Binding[:], e.Bodies)
	x.write("ak.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	x.write("quote", e.Quote)
	x.write("sig", e.Signature)
	x.run("tpm2_checkquote", "-u", "ak.pem", "-m", "quote", "-s", "sig", "-g", "sha256", "-q", hex.EncodeToString(qualifying))

	for _, ek := range keys {
		// a credential by tpm2_makecredential, opened by our node
		secret := sha256.Sum256([]byte("secret for " + ek.Template))
		der, err := x509.MarshalPKIXPublicKey(ek.Certificate.PublicKey)
		require.NoError(t, err)
		x.write("secret", secret[:])
		handle := map[string]string{"L-1": "0x81010001", "H-3": "0x81010016"}[ek.Template]
		x.write("ek.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
		x.run("tpm2_readpublic", "-c", handle, "-o", "ek.pub")
		x.run("tpm2_makecredential", "-u", "ek.pub", "-s", "secret", "-n", hex.EncodeToString(ak.Name()), "-o", "credential")
		blob := x.read("credential")[8:] // magic and version
		idObject := blob[2 : 2+int(blob[0])<<8+int(blob[1])]
		rest := blob[2+len(idObject):]
		pinned := open(t, dev, attest.NodeConfig{EKName: ek.Name})
		n2key, err := pinned.DeviceKey(t.Context())
		require.NoError(t, err)
		rsp, err := pinned.Activate(t.Context(), &attest.ActivationChallenge{
			Version: 1, ID: "x", Device: pinned.Device(), Nonce: make([]byte, 32), Credential: idObject, Secret: rest[2:],
		}, n2key)
		require.NoError(t, err, ek.Template)
		assert.Equal(t, secret[:], rsp.Secret, ek.Template)
	}

	// an attestation key of tpm2-tools: its quote verified by ours, a credential
	// of ours opened by tpm2_activatecredential
	x.run("tpm2_createprimary", "-C", "e", "-G", "ecc256:ecdsa-sha256:null", "-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign", "-c", "ak.ctx")
	x.run("tpm2_readpublic", "-c", "ak.ctx", "-o", "ak.pub", "-f", "tss", "-n", "ak.name")
	public := x.read("ak.pub")[2:]
	theirs, err := quote.ParseKey(public)
	require.NoError(t, err)
	assert.Equal(t, x.read("ak.name"), theirs.Name())
	x.run("tpm2_quote", "-c", "ak.ctx", "-l", "sha256:0,7,13+sha384:0", "-q", hex.EncodeToString(ch.Nonce), "-m", "q", "-s", "s")
	sel := []quote.Selection{{Bank: crypto.SHA256, PCRs: []int{0, 7, 13}}, {Bank: crypto.SHA384, PCRs: []int{0}}}
	v, err := theirs.VerifyQuote(x.read("q"), x.read("s"), make([]byte, 3*32+48), sel, ch.Nonce)
	require.NoError(t, err, "two banks in one quote")
	assert.Equal(t, make([]byte, 48), v.PCR(crypto.SHA384, 0))

	for _, ek := range keys {
		cloud2 := newCloud(t, endorsers)
		ch, err := cloud2.registrar.Begin(t.Context(), &attest.EnrollmentRequest{Version: 1, EKCertificates: [][]byte{ek.Certificate.Raw}, AKPublic: public})
		require.NoError(t, err)
		blob := []byte{0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1}
		blob = append(blob, tpm2.Marshal(tpm2.TPM2BIDObject{Buffer: ch.Credential})...)
		x.write("ours", append(blob, tpm2.Marshal(tpm2.TPM2BEncryptedSecret{Buffer: ch.Secret})...))
		if ek.Template == "H-3" {
			x.run("tpm2_activatecredential", "-c", "ak.ctx", "-C", "0x81010016", "-i", "ours", "-o", "opened")
		} else {
			x.run("tpm2_startauthsession", "--policy-session", "-S", "session")
			x.run("tpm2_policysecret", "-S", "session", "-c", "e")
			x.run("tpm2_activatecredential", "-c", "ak.ctx", "-C", "0x81010001", "-P", "session:session", "-i", "ours", "-o", "opened")
			x.run("tpm2_flushcontext", "session")
		}
		csr, err := key.CSR()
		require.NoError(t, err)
		_, err = cloud2.registrar.Complete(t.Context(), &attest.ActivationResponse{
			Version: 1, ID: ch.ID, Secret: x.read("opened"), KeyPublic: public, Certify: x.read("q"), Signature: x.read("s"), CSR: csr,
		})
		require.ErrorIs(t, err, quote.ErrMalformed, "the secret was right: it gets as far as the certification")
	}
}
