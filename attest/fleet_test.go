package attest_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/ca"
	"github.com/trusttree/trusttree/attest/internal/softnode"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/registry"
	"github.com/trusttree/trusttree/attest/registry/registrytest"
	"github.com/trusttree/trusttree/internal/durable"
	"github.com/trusttree/trusttree/internal/testenv"
)

// fileDevices is a DeviceStore of one durable file a device, for one process
// at a time: what a killed verifier acknowledged is there when it comes back.
type fileDevices struct {
	dir string
	mu  [64]sync.Mutex
}

func (s *fileDevices) name(id registry.DeviceID) string { return filepath.Join(s.dir, id.String()) }

func (s *fileDevices) Get(ctx context.Context, id registry.DeviceID) (registry.Device, error) {
	if err := ctx.Err(); err != nil {
		return registry.Device{}, err
	}
	b, err := os.ReadFile(s.name(id))
	if errors.Is(err, os.ErrNotExist) {
		return registry.Device{}, registry.ErrNotFound
	}
	if err != nil {
		return registry.Device{}, err
	}
	return registry.ParseDevice(b)
}

func (s *fileDevices) Put(ctx context.Context, d registry.Device) (uint64, error) {
	mu := &s.mu[d.ID[0]%64]
	mu.Lock()
	defer mu.Unlock()
	old, err := s.Get(ctx, d.ID)
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return 0, err
	}
	if old.Version != d.Version {
		return 0, registry.ErrConflict
	}
	d.Version++
	b, err := d.Marshal()
	if err != nil {
		return 0, err
	}
	return d.Version, durable.WriteFile(s.name(d.ID), b, 0o600)
}

func (s *fileDevices) List(ctx context.Context, after registry.DeviceID, limit int) (list []registry.Device, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		id, err := registry.ParseDeviceID(e.Name())
		if err != nil || bytes.Compare(id[:], after[:]) <= 0 {
			continue
		}
		if len(list) == limit {
			break
		}
		d, err := s.Get(ctx, id)
		if err != nil {
			return nil, err
		}
		list = append(list, d)
	}
	return list, nil
}

func TestFileDevicesConform(t *testing.T) {
	registrytest.Devices(t, &fileDevices{dir: t.TempDir()})
}

// serveFleet is the verifier process: it serves enrolment and appraisal on a
// unix socket until it is killed.
func serveFleet(dir string) error {
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			panic(err)
		}
		return b
	}
	cert, err := x509.ParseCertificate(read("ca.der"))
	if err != nil {
		return err
	}
	key, err := x509.ParseECPrivateKey(read("ca.key"))
	if err != nil {
		return err
	}
	issuer, err := ca.New(cert, key)
	if err != nil {
		return err
	}
	maker, err := x509.ParseCertificate(read("maker.der"))
	if err != nil {
		return err
	}
	devices := &fileDevices{dir: filepath.Join(dir, "devices")}
	challenges := registry.NewMemoryChallenges(0, nil)
	r, err := attest.NewRegistrar(attest.RegistrarConfig{
		Endorsers: attest.Endorsers{Anchors: []*x509.Certificate{maker}}, Devices: devices, Challenges: challenges, Issuer: issuer, TrustDomain: "city.example",
		Admit: func(context.Context, attest.Applicant) error { return nil },
	})
	if err != nil {
		return err
	}
	v, err := attest.NewVerifier(attest.VerifierConfig{
		Devices: devices, Challenges: challenges, PCRs: []quote.Selection{{Bank: crypto.SHA256, PCRs: []int{0, 1, 2, 3, 4, 5, 6, 7}}}, Extended: []int{},
		Appraisers: []attest.Appraiser{func(context.Context, attest.Input) attest.Opinion {
			return attest.Opinion{Status: attest.StatusAffirming}
		}},
	})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/enroll/begin", handle(r.Begin))
	mux.HandleFunc("/v1/enroll/complete", handle(r.Complete))
	mux.HandleFunc("/challenge", func(w http.ResponseWriter, req *http.Request) {
		answer(w, func() (*attest.Challenge, error) { return v.Challenge(req.Context(), sessionOf(req)) })
	})
	mux.HandleFunc("/appraise", func(w http.ResponseWriter, req *http.Request) {
		b, err := io.ReadAll(http.MaxBytesReader(w, req.Body, attest.MaxEvidence))
		if err == nil {
			var e *attest.Evidence
			if e, err = attest.Parse[attest.Evidence](b); err == nil {
				_, err = v.Appraise(req.Context(), sessionOf(req), e)
			}
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
		}
	})
	mux.HandleFunc("/memory", func(w http.ResponseWriter, _ *http.Request) {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		fmt.Fprint(w, m.HeapInuse)
	})
	_ = os.Remove(filepath.Join(dir, "socket"))
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		return err
	}
	return http.Serve(l, mux)
}

// sessionOf stands for what a server knows from its end of the TLS session.
func sessionOf(req *http.Request) attest.Session {
	s := attest.Session{Purpose: attest.PurposeAttest}
	_ = s.Device.UnmarshalText([]byte(req.Header.Get("Device")))
	leaf, _ := hex.DecodeString(req.Header.Get("Leaf"))
	copy(s.LeafSPKI[:], leaf)
	binding, _ := hex.DecodeString(req.Header.Get("Binding"))
	copy(s.Binding[:], binding)
	return s
}

func handle[In, Out attest.Message](f func(context.Context, *In) (*Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		answer(w, func() (*Out, error) {
			b, err := io.ReadAll(http.MaxBytesReader(w, req.Body, attest.MaxMessage))
			if err != nil {
				return nil, err
			}
			m, err := attest.Parse[In](b)
			if err != nil {
				return nil, err
			}
			return f(req.Context(), m)
		})
	}
}

func answer[Out attest.Message](w http.ResponseWriter, f func() (*Out, error)) {
	out, err := f()
	var b []byte
	if err == nil {
		b, err = attest.Marshal(out)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	_, _ = w.Write(b)
}

var errRefused = errors.New("refused")

type fleetClient struct{ http http.Client }

func (c *fleetClient) post(ctx context.Context, path string, in, out any, s *attest.Session) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://verifier"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if s != nil {
		req.Header.Set("Device", s.Device.String())
		req.Header.Set("Leaf", hex.EncodeToString(s.LeafSPKI[:]))
		req.Header.Set("Binding", hex.EncodeToString(s.Binding[:]))
	}
	rsp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer rsp.Body.Close()
	b, err := io.ReadAll(rsp.Body)
	if err != nil {
		return err
	}
	if rsp.StatusCode != http.StatusOK {
		return fmt.Errorf("%w: %s", errRefused, strings.TrimSpace(string(b)))
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// node takes one simulated node through enrolment and attestation, starting
// over when the verifier is gone or has forgotten the challenge.
func (c *fleetClient) node(ctx context.Context, n *softnode.Node, enrolled func()) error {
	enroll := func() error {
		var ch attest.ActivationChallenge
		if err := c.post(ctx, "/v1/enroll/begin", n.EnrollmentRequest(), &ch, nil); err != nil {
			return err
		}
		rsp, err := n.Activate(&ch)
		if err != nil {
			return err
		}
		var e attest.Enrollment
		return c.post(ctx, "/v1/enroll/complete", rsp, &e, nil)
	}
	appraise := func() error {
		s := n.Session(nil)
		var ch attest.Challenge
		if err := c.post(ctx, "/challenge", nil, &ch, &s); err != nil {
			return err
		}
		s = n.Session(ch.Nonce)
		return c.post(ctx, "/appraise", n.Evidence(ctx, s, &ch), nil, &s)
	}
	for _, step := range []func() error{enroll, appraise} {
		for {
			err := step()
			if err == nil {
				break
			}
			if errors.Is(err, errRefused) && !strings.Contains(err.Error(), attest.ErrChallenge.Error()) || ctx.Err() != nil {
				return err
			}
			time.Sleep(20 * time.Millisecond)
		}
		if enrolled != nil {
			enrolled()
			enrolled = nil
		}
	}
	return nil
}

// TestFleet has many simulated nodes enrol and attest against one verifier
// process, which is killed and restarted midway: no node is lost, none that
// was told that it is enrolled has to enrol again.
func TestFleet(t *testing.T) {
	size, dir := testenv.N(500, 10000), t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "devices"), 0o700))
	maker := softnode.NewMaker()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	require.NoError(t, err)
	cert, err := ca.SelfSign("owner", key, time.Now(), 48*time.Hour)
	require.NoError(t, err)
	for name, b := range map[string][]byte{"ca.der": cert.Raw, "ca.key": keyDER, "maker.der": maker.Root.Raw} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	start := func() *exec.Cmd {
		self, err := os.Executable()
		require.NoError(t, err)
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), "ATTEST_TEST_FLEET="+dir)
		cmd.Stderr = os.Stderr
		require.NoError(t, cmd.Start())
		return cmd
	}
	var d net.Dialer
	c := &fleetClient{http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 64,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", filepath.Join(dir, "socket"))
		},
	}}}
	t.Cleanup(c.http.CloseIdleConnections)
	nodes := make([]*softnode.Node, size)
	for i := range nodes {
		nodes[i] = softnode.NewNode(maker)
	}
	verifier := start()
	t.Cleanup(func() { _ = verifier.Process.Kill(); _ = verifier.Wait() })

	var done atomic.Int32
	killed := make(chan struct{})
	acknowledged := make([]bool, size)
	latency := make([]time.Duration, size)
	work := make(chan int)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	began := time.Now()
	for range 16 {
		wg.Go(func() {
			for i := range work {
				at := time.Now()
				err := c.node(ctx, nodes[i], func() { acknowledged[i] = true })
				assert.NoError(t, err, "node %d", i)
				latency[i] = time.Since(at)
				if done.Add(1) == int32(size/2) {
					close(killed)
				}
			}
		})
	}
	go func() {
		defer close(work)
		for i := range nodes {
			select {
			case work <- i:
			case <-ctx.Done():
				return
			}
		}
	}()
	select {
	case <-killed:
	case <-ctx.Done():
		t.Fatal("the fleet does not get there")
	}
	require.NoError(t, verifier.Process.Kill()) // as a power cut does
	_ = verifier.Wait()
	verifier = start()
	wg.Wait()
	took := time.Since(began)

	s := &fileDevices{dir: filepath.Join(dir, "devices")}
	var after registry.DeviceID
	affirming := 0
	for {
		page, err := s.List(t.Context(), after, 1000)
		require.NoError(t, err)
		for _, d := range page {
			after = d.ID
			if d.State == registry.Affirming {
				affirming++
			}
		}
		if len(page) < 1000 {
			break
		}
	}
	assert.Equal(t, size, affirming)
	assert.NotContains(t, acknowledged, false)
	rsp, err := c.http.Get("http://verifier/memory")
	require.NoError(t, err)
	defer rsp.Body.Close()
	var heap int
	_, err = fmt.Fscan(rsp.Body, &heap)
	require.NoError(t, err)
	slices.Sort(latency)
	t.Logf("%d nodes enrolled and attested in %.1f s with a restart midway: %.0f a second, p50 %v, p99 %v, verifier's heap %d bytes a node",
		size, took.Seconds(), float64(size)/took.Seconds(), latency[size/2].Round(time.Millisecond), latency[size*99/100].Round(time.Millisecond), heap/size)
}
