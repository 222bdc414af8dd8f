package moduleidtest_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
	"github.com/trusttree/trusttree/moduleid/spdm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func port(t *testing.T) *moduleidtest.SPDMPort {
	t.Helper()
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	r, _, err := moduleidtest.NewSPDM(ca, "radio", []byte("firmware"))
	require.NoError(t, err)
	return moduleidtest.NewSPDMPort(r)
}

var measured = spdm.Scheme{Measurements: true}

func prove(t *testing.T, tr spdm.Transport, patience time.Duration) (moduleid.Challenge, *moduleid.Evidence, error) {
	t.Helper()
	chip, err := spdm.NewRequester(tr, spdm.Config{Scheme: measured})
	require.NoError(t, err)
	defer chip.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c := moduleid.NewChallenge("node", "bay")
	e, err := chip.Prove(ctx, c)
	return c, e, err
}

// reasons are what a requester says, and whether it is the module's answer
// that it refuses (otherwise none came, or the module itself refuses).
var reasons = map[moduleidtest.SPDMFault]struct {
	refused bool
	want    string
}{
	moduleidtest.SPDMDrop:                {false, "spdm: context deadline exceeded"},
	moduleidtest.SPDMDelay:               {}, // see TestLateAnswer
	moduleidtest.SPDMDisconnect:          {false, "unexpected EOF"},
	moduleidtest.SPDMTruncate:            {true, "CHALLENGE_AUTH: the message is too short"},
	moduleidtest.SPDMFlip:                {true, "did not select exactly one signature and one hash algorithm"},
	moduleidtest.SPDMWrongSignature:      {true, "CHALLENGE_AUTH: the signature does not match the transcript"},
	moduleidtest.SPDMStaleNonce:          {true, "CHALLENGE_AUTH is about another requester's context"},
	moduleidtest.SPDMBusy:                {false, "answered request 0x83 with Busy"},
	moduleidtest.SPDMNotReady:            {false, "answered request 0x83 with ResponseNotReady"},
	moduleidtest.SPDMUnexpected:          {false, "answered request 0x83 with UnexpectedRequest"},
	moduleidtest.SPDMEndlessChunks:       {true, "more than was announced"},
	moduleidtest.SPDMLyingLength:         {true, "announces a portion of 65535 bytes"},
	moduleidtest.SPDMWrongChain:          {true, "the certificate chain is not the one of DIGESTS"},
	moduleidtest.SPDMSwap:                {true, "CHALLENGE_AUTH is about another certificate chain"},
	moduleidtest.SPDMChangedMeasurements: {true, "measurements changed while they were read"},
}

func TestEveryFaultIsRefusedWithItsOwnReason(t *testing.T) {
	said := map[string]moduleidtest.SPDMFault{}
	for _, fault := range moduleidtest.SPDMFaults() {
		tc, ok := reasons[fault]
		require.True(t, ok, fault)
		if tc.want == "" {
			continue
		}
		require.NotContains(t, said, tc.want, "%s has the reason of %s", fault, said[tc.want])
		said[tc.want] = fault
		t.Run(fault.String(), func(t *testing.T) {
			p := port(t)
			patience := time.Minute
			if fault == moduleidtest.SPDMDrop {
				patience = time.Second
			}
			_, _, err := prove(t, p.Connect(), time.Minute)
			require.NoError(t, err, "no fault yet")
			p.Inject(fault)
			_, _, err = prove(t, p.Connect(), patience)
			require.ErrorContains(t, err, tc.want)
			assert.Equal(t, tc.refused, errors.Is(err, moduleid.ErrRefused), err)
			assert.Positive(t, p.Hits())
			p.Inject(0)
			c, e, err := prove(t, p.Connect(), time.Minute)
			require.NoError(t, err, "the fault is over")
			_, err = measured.Check(c, e)
			require.NoError(t, err)
		})
	}
}

func TestFaultsAtOtherRequests(t *testing.T) {
	for name, tc := range map[string]struct {
		fault moduleidtest.SPDMFault
		at    moduleidtest.SPDMRequest
		want  string
	}{
		"replayed measurements":        {moduleidtest.SPDMStaleNonce, moduleidtest.SPDMGetMeasurements, "MEASUREMENTS is about another requester's context"},
		"measurements of another key":  {moduleidtest.SPDMWrongSignature, moduleidtest.SPDMGetMeasurements, "MEASUREMENTS: the signature does not match"},
		"measurements flipped":         {moduleidtest.SPDMFlip, moduleidtest.SPDMGetMeasurements, "MEASUREMENTS: the signature does not match"},
		"measurements of another":      {moduleidtest.SPDMSwap, moduleidtest.SPDMGetMeasurements, "MEASUREMENTS: the signature does not match"},
		"capability flipped":           {moduleidtest.SPDMFlip, moduleidtest.SPDMGetCapabilities, "CHALLENGE_AUTH: the signature does not match"},
		"more versions than there are": {moduleidtest.SPDMLyingLength, moduleidtest.SPDMGetVersion, "VERSION: the message is too short"},
		"more digests than there are":  {moduleidtest.SPDMLyingLength, moduleidtest.SPDMGetDigests, "8 slots need"},
		"longer algorithms":            {moduleidtest.SPDMLyingLength, moduleidtest.SPDMAlgorithms, "ALGORITHMS has the wrong length"},
		"longer measurements":          {moduleidtest.SPDMLyingLength, moduleidtest.SPDMGetMeasurements, "MEASUREMENTS: the message is too short"},
		"a length that is not there":   {moduleidtest.SPDMLyingLength, moduleidtest.SPDMChallenge, "no length at a fixed place"},
		"a nonce that is not there":    {moduleidtest.SPDMStaleNonce, moduleidtest.SPDMGetDigests, "no nonce"},
		"digests of another":           {moduleidtest.SPDMWrongChain, moduleidtest.SPDMGetDigests, "the certificate chain is not the one of DIGESTS"},
		"a fault that there is not":    {99, moduleidtest.SPDMGetVersion, "no fault 99"},
	} {
		t.Run(name, func(t *testing.T) {
			p := port(t)
			p.Inject(tc.fault, tc.at)
			_, _, err := prove(t, p.Connect(), time.Minute)
			require.ErrorContains(t, err, tc.want)
		})
	}
}

func TestLateAnswer(t *testing.T) {
	p := port(t)
	p.Inject(moduleidtest.SPDMDelay)
	_, _, err := prove(t, p.Connect(), time.Minute)
	require.NoError(t, err, "late is no lie")
	_, _, err = prove(t, p.Connect(), 20*time.Millisecond)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestFaultsThatPass(t *testing.T) {
	for _, fault := range []moduleidtest.SPDMFault{moduleidtest.SPDMBusy, moduleidtest.SPDMNotReady} {
		t.Run(fault.String(), func(t *testing.T) {
			p, met := port(t), 0
			p.OnExchange(func(x *moduleidtest.SPDMExchange) error {
				if met == 3 || x.Of != moduleidtest.SPDMChallenge {
					return nil
				}
				met++
				return x.Inject(fault)
			})
			_, _, err := prove(t, p.Connect(), time.Minute)
			require.NoError(t, err)
			assert.Equal(t, 3, met)
		})
	}
	t.Run("a connection that broke", func(t *testing.T) {
		p := port(t)
		p.Inject(moduleidtest.SPDMDisconnect)
		tr := p.Connect()
		_, _, err := prove(t, tr, time.Minute)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		p.Inject(0)
		_, _, err = prove(t, tr, time.Minute)
		require.ErrorContains(t, err, "broke earlier")
		_, _, err = prove(t, p.Connect(), time.Minute)
		require.NoError(t, err)
	})
}

// The module is another one between check and use, or the same one with other
// firmware: its proof holds, and the verifier refuses it.
func TestModuleChangedBetweenCheckAndUse(t *testing.T) {
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	cert, err := ca.Issue("radio 1", key.Public(), nil)
	require.NoError(t, err)
	firmware := func(version string) *spdm.Responder {
		sum := sha256.Sum256([]byte(version))
		r, err := spdm.NewResponder(spdm.ResponderConfig{Key: key, Chain: []*x509.Certificate{cert, ca.Certificate},
			Measurements: []moduleid.Measurement{{Index: 1, Kind: "firmware", Value: sum[:]}}})
		require.NoError(t, err)
		return r
	}
	p := moduleidtest.NewSPDMPort(firmware("v1"))
	sum := sha256.Sum256([]byte("v1"))
	v := &moduleid.Verifier{Schemes: []moduleid.Scheme{measured}, Roots: ca.Pool(), UnsafeNoRevocations: true,
		Registry:   moduleid.Records{moduleid.ID(cert): {Class: "radio"}},
		Classes:    map[string]moduleid.Class{"radio": {Measurements: map[int][][]byte{1: {sum[:]}}}},
		Connectors: map[string]moduleid.Connector{"bay": {Classes: []string{"radio"}}}}
	verify := func() error {
		c, e, err := prove(t, p.Connect(), time.Minute)
		require.NoError(t, err)
		_, err = v.Verify(c, e)
		return err
	}
	require.NoError(t, verify())

	p.Plug(firmware("v2"))
	var refused *moduleid.RefusedError
	require.ErrorAs(t, verify(), &refused)
	assert.Equal(t, moduleid.ReasonMeasurement, refused.Reason())

	other, _, err := moduleidtest.NewSPDM(ca, "radio 2", []byte("v1"))
	require.NoError(t, err)
	p.Plug(other)
	require.ErrorAs(t, verify(), &refused)
	assert.Equal(t, moduleid.ReasonForeign, refused.Reason())

	p.Plug(nil)
	_, _, err = prove(t, p.Connect(), time.Minute)
	require.ErrorIs(t, err, moduleid.ErrAbsent)
}

func TestFaultsOverTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := port(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.ServeTCP(ctx, l) }()
	try := func(patience time.Duration) error {
		tr, err := spdm.DialTCP(t.Context(), l.Addr().String())
		require.NoError(t, err)
		_, _, err = prove(t, tr, patience)
		return err
	}
	require.NoError(t, try(time.Minute))
	for _, fault := range moduleidtest.SPDMFaults() {
		want, patience := reasons[fault].want, time.Minute
		switch fault {
		case moduleidtest.SPDMDrop, moduleidtest.SPDMDelay:
			want, patience = "deadline exceeded", 50*time.Millisecond
		}
		p.Inject(fault)
		require.ErrorContains(t, try(patience), want, fault)
		p.Inject(0)
		if fault == moduleidtest.SPDMSwap {
			require.NoError(t, try(time.Minute), "the other module is as good as any, to who does not ask whose it is")
		}
	}
	require.NoError(t, try(time.Minute))
	cancel()
	require.NoError(t, <-done)
}
