package e2e_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/internal/city"
	"github.com/trusttree/trusttree/tlsconn"
)

// lightNode is a node's end of the tunnel in this process: a software TPM, an
// identity, and evidence on demand. It stands for a node of a large fleet.
type lightNode struct {
	node     *attest.Node
	identity *tlsconn.Identity
	client   *tlsconn.Client
	http     *http.Client
	verdicts chan error
}

// newLightNode enrols a node and brings its tunnel up.
func newLightNode(ctx context.Context, c *city.City) (*lightNode, error) {
	t, err := c.Maker.NewTPM()
	if err != nil {
		return nil, err
	}
	if err := city.Measure(t, city.GoodBoot); err != nil {
		return nil, err
	}
	l := &lightNode{verdicts: make(chan error, 1)}
	answer, err := c.Owner.Call(ctx, 0, http.MethodPost, "/v1/admin/tokens", nil)
	if err != nil {
		return nil, err
	}
	var token struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(answer, &token); err != nil {
		return nil, err
	}
	boot, err := wire.LoadBootstrap(filepath.Join(c.Clouds[0].State, "bootstrap.json"))
	if err != nil {
		return nil, err
	}
	l.node, err = attest.Open(ctx, t, attest.NodeConfig{
		Endorsers: attest.Endorsers{Anchors: append([]*x509.Certificate{c.Maker.Root}, c.Maker.Intermediates...)},
		Collectors: []attest.Collector{
			func(context.Context, []byte) (string, []byte, error) { return wire.TypeEventLog, city.GoodBoot, nil },
			// The log is that of a small machine: with this there are 20 KB.
			func(context.Context, []byte) (string, []byte, error) {
				return "application/octet-stream", make([]byte, 20_000-len(city.GoodBoot)), nil
			},
		},
	})
	if err != nil {
		return nil, err
	}
	roots, err := boot.RootPool()
	if err != nil {
		return nil, err
	}
	web := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, DisableKeepAlives: true}}
	challenge, err := postMessage[attest.ActivationChallenge](ctx, web, boot.EnrollURL+"/v1/enroll/begin", l.node.EnrollmentRequest([]byte(token.Token)))
	if err != nil {
		return nil, err
	}
	key, err := l.node.DeviceKey(ctx)
	if err != nil {
		return nil, err
	}
	response, err := l.node.Activate(ctx, challenge, key)
	if err != nil {
		return nil, err
	}
	enrollment, err := postMessage[attest.Enrollment](ctx, web, boot.EnrollURL+"/v1/enroll/complete", response)
	if err != nil {
		return nil, err
	}
	if err := l.node.StoreCertificate(ctx, enrollment, roots); err != nil {
		return nil, err
	}
	return l, l.connect(ctx, boot)
}

func (l *lightNode) connect(ctx context.Context, boot *wire.Bootstrap) error {
	cert, err := l.node.Certificate(ctx)
	if err != nil {
		return err
	}
	if l.identity, err = tlsconn.NewIdentity(cert); err != nil {
		return err
	}
	certs, err := boot.RootCerts()
	if err != nil {
		return err
	}
	trust, err := tlsconn.NewTrustStore(tlsconn.TrustOptions{Roots: certs})
	if err != nil {
		return err
	}
	authorize, err := tlsconn.AllowIDs(boot.GatewayID)
	if err != nil {
		return err
	}
	policy, err := tlsconn.NewPolicyStore(&tlsconn.Policy{Version: 1, Serial: 1, Rules: []tlsconn.Rule{{
		Name: "cloud", Action: tlsconn.Allow, Peers: []string{"spiffe://" + city.Domain + "/node/*"}, Direction: tlsconn.ToCloud, Proto: tlsconn.TCP,
		Services: []string{wire.ServiceIngest, wire.ServiceReport}}}})
	if err != nil {
		return err
	}
	l.client, err = tlsconn.NewClient(tlsconn.ClientConfig{
		Config:   tlsconn.Config{Identity: l.identity, Trust: trust, Authorize: authorize, Policy: policy, RequirePQ: true},
		Gateways: boot.Gateways(), Attest: l.evidence,
	})
	if err != nil {
		return err
	}
	l.http = &http.Client{Transport: l.client.Transport(), Timeout: time.Minute}
	go func() { _ = l.client.Run(ctx) }()
	_, err = l.client.Wait(ctx)
	<-l.verdicts // of the tunnel's first exchange
	return err
}

func (l *lightNode) evidence(ctx context.Context, stream io.ReadWriter, bind func([]byte) ([]byte, error)) (err error) {
	defer func() {
		select {
		case l.verdicts <- err:
		default:
		}
	}()
	msg, err := wire.ReadFrame(stream, attest.MaxMessage)
	if err != nil {
		return err
	}
	challenge, err := attest.Parse[attest.Challenge](msg)
	if err != nil {
		return err
	}
	binding, err := bind(challenge.Nonce)
	if err != nil {
		return err
	}
	session := attest.Session{Device: l.node.Device(), Purpose: attest.PurposeAttest, LeafSPKI: sha256.Sum256(l.identity.Leaf().RawSubjectPublicKeyInfo)}
	copy(session.Binding[:], binding)
	evidence, err := l.node.Evidence(ctx, session, challenge)
	if err != nil {
		return err
	}
	if msg, err = attest.Marshal(evidence); err != nil {
		return err
	}
	if err := wire.WriteFrame(stream, msg); err != nil {
		return err
	}
	if msg, err = wire.ReadFrame(stream, attest.MaxMessage); err != nil {
		return err
	}
	var v wire.Verdict
	if err := wire.Decode(msg, attest.MaxMessage, &v); err != nil {
		return err
	}
	if !v.OK {
		return errors.New(v.Reason)
	}
	return nil
}

// attestAgain asks for an attestation and waits for its verdict.
func (l *lightNode) attestAgain(ctx context.Context) error {
	if err := l.post(ctx, wire.ServiceReport, "/v1/changed", nil); err != nil {
		return err
	}
	select {
	case err := <-l.verdicts:
		return err
	case <-time.After(30 * time.Second):
		return errors.New("no verdict")
	}
}

func (l *lightNode) post(ctx context.Context, service, path string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+service+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	rsp, err := l.http.Do(req)
	if err != nil {
		return err
	}
	defer rsp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(rsp.Body, 4096))
	if err == nil && rsp.StatusCode != http.StatusNoContent {
		err = fmt.Errorf("%s: %s: %s", path, rsp.Status, text)
	}
	return err
}

func postMessage[Out, In attest.Message](ctx context.Context, client *http.Client, url string, in *In) (*Out, error) {
	body, err := attest.Marshal(in)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	rsp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer rsp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(rsp.Body, attest.MaxMessage))
	if err == nil && rsp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, rsp.Status, data)
	}
	if err != nil {
		return nil, err
	}
	return attest.Parse[Out](data)
}

// BenchmarkAttestations measures full attestations of nodes over their tunnels
// against the real cloud process: challenge, one P-256 quote, the event log of
// a real boot, durable verdict. The nodes run on the same processors.
func BenchmarkAttestations(b *testing.B) {
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	bin := filepath.Join(b.TempDir(), "bin")
	require.NoError(b, os.MkdirAll(bin, 0o755))
	require.NoError(b, city.Build(ctx, bin))
	c, err := city.Found(ctx, city.Config{Dir: b.TempDir(), Bin: bin, EditCloud: func(_ string, cfg map[string]any) {
		cfg["connectors"] = map[string]string{}
		cfg["attest_seconds"] = 3600
	}})
	require.NoError(b, err)
	defer func() { require.NoError(b, c.Close()) }()
	require.NoError(b, c.StartCloud(ctx, 0))
	nodes := make([]*lightNode, 64)
	for i := range nodes {
		nodes[i], err = newLightNode(ctx, c)
		require.NoError(b, err)
	}
	took := make([][]time.Duration, len(nodes))
	var wg sync.WaitGroup
	work := make(chan struct{}, len(nodes))
	b.ResetTimer()
	for i, n := range nodes {
		wg.Go(func() {
			for range work {
				start := time.Now()
				if err := n.attestAgain(ctx); err != nil {
					b.Error(err)
					return
				}
				took[i] = append(took[i], time.Since(start))
			}
		})
	}
	for range b.N {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
	b.StopTimer()
	all := slices.Concat(took...)
	slices.Sort(all)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "attestations/s")
	if len(all) > 0 {
		b.ReportMetric(float64(all[int(math.Min(float64(len(all))*0.99, float64(len(all)-1)))].Milliseconds()), "p99-ms")
	}
	b.Logf("bars: at least 500 attestations/s, p99 at most 250 ms; evidence of 20 KB with a real event log of %d bytes; cloud peak memory %s", len(city.GoodBoot), c.Clouds[0].Proc.PeakRSS())
}
