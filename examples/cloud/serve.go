package main

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"filippo.io/age"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/ca"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/registry"
	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/atecc"
	"github.com/trusttree/trusttree/moduleid/revocation"
	"github.com/trusttree/trusttree/moduleid/spdm"
	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/keys"
	"github.com/trusttree/trusttree/tlsconn"
)

// cloud is one running instance.
type cloud struct {
	state string
	cfg   *config
	log   *slog.Logger
	ca    *authority
	store *tenantstore.Store
	trust *tlsconn.TrustStore
	fleet *fleet

	registrar *attest.Registrar
	verifier  *attest.Verifier
	gateway   *tlsconn.Gateway

	refMu  sync.Mutex
	refs   []*secureboot.Policy
	refErr error
	refAt  time.Time // when refs were read
}

func newCloud(ctx context.Context, state string, cfg *config, log *slog.Logger) (_ *cloud, err error) {
	c := &cloud{state: state, cfg: cfg, log: log, fleet: newFleet(time.Now)}
	if c.ca, err = loadAuthority(state); err != nil {
		return nil, err
	}
	if err := c.openStore(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.store.Close(context.WithoutCancel(ctx)))
		}
	}()
	if err := c.openAttestation(); err != nil {
		return nil, err
	}
	return c, c.openGateway(ctx)
}

func (c *cloud) openStore(ctx context.Context) error {
	owner, err := loadPublic(filepath.Join(c.state, "owner.pub"))
	if err != nil {
		return err
	}
	kek, err := keys.OpenDir(ctx, filepath.Join(c.state, "kek"), nil)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(c.ca.cert)
	c.store, err = tenantstore.Open(ctx, tenantstore.Config{
		Name: c.cfg.TrustDomain, Dir: filepath.Join(c.state, "store"), Keys: kek,
		Owners: []crypto.PublicKey{owner}, Roots: roots, Logger: c.log,
	})
	if err != nil {
		return err
	}
	signed, err := os.ReadFile(filepath.Join(c.state, "assignments.json"))
	if err == nil {
		if err = c.store.Assign(ctx, signed); errors.Is(err, tenantstore.ErrRollback) {
			err = nil // newer ones came over the operators' API
		}
	}
	return err
}

func (c *cloud) openAttestation() error {
	makers, err := loadCerts(filepath.Join(c.state, "tpm-makers"))
	if err != nil {
		return err
	}
	if len(makers) == 0 {
		return wire.Usage("%s is empty: put the certificates of the TPM makers whose nodes may enrol there, as *.pem", filepath.Join(c.state, "tpm-makers"))
	}
	issuer, err := ca.New(c.ca.cert, c.ca.key)
	if err != nil {
		return err
	}
	system := c.store.System()
	endorsers := attest.Endorsers{Anchors: makers}
	c.registrar, err = attest.NewRegistrar(attest.RegistrarConfig{
		Endorsers: endorsers, Admit: admission(tokens{system}, devices{system}, time.Now),
		Devices: devices{system}, Challenges: challenges{system},
		Issuer: issuer, TrustDomain: c.cfg.TrustDomain, Log: c.log,
	})
	if err != nil {
		return err
	}
	modules, err := c.moduleVerifier()
	if err != nil {
		return err
	}
	bank := crypto.SHA256
	if c.cfg.Bank == "sha384" {
		bank = crypto.SHA384
	}
	c.verifier, err = attest.NewVerifier(attest.VerifierConfig{
		Endorsers: endorsers, Devices: devices{system}, Challenges: challenges{system},
		PCRs:       []quote.Selection{{Bank: bank, PCRs: c.cfg.PCRs}},
		Appraisers: []attest.Appraiser{bootAppraiser(c.currentReferences), moduleAppraiser(modules)},
		ResultTTL:  time.Duration(c.cfg.AttestSeconds) * time.Second, Log: c.log,
	})
	return err
}

func (c *cloud) moduleVerifier() (*moduleid.Verifier, error) {
	v := &moduleid.Verifier{
		Schemes: []moduleid.Scheme{atecc.Scheme(), spdm.Scheme{}},
		Roots:   x509.NewCertPool(), Classes: map[string]moduleid.Class{}, Connectors: map[string]moduleid.Connector{},
	}
	owner, err := loadPublic(filepath.Join(c.state, "owner.pub"))
	if err != nil {
		return nil, err
	}
	revoked, err := revocation.New(revocation.Config{Keys: []crypto.PublicKey{owner}})
	if err != nil {
		return nil, err
	}
	list, err := os.ReadFile(filepath.Join(c.state, "module-revocations"))
	if err != nil {
		return nil, err
	}
	if err := revoked.Update(list); err != nil {
		return nil, err
	}
	v.Revocations = revoked
	for connector, class := range c.cfg.Connectors {
		v.Connectors[connector] = moduleid.Connector{Classes: []string{class}, Required: true}
		if _, ok := v.Classes[class]; ok {
			continue
		}
		certs, err := loadCerts(filepath.Join(c.state, "module-makers", class))
		if err != nil {
			return nil, fmt.Errorf("module class %q: %w", class, err)
		}
		members := x509.NewCertPool()
		for _, cert := range certs {
			members.AddCert(cert)
			v.Roots.AddCert(cert)
		}
		v.Classes[class] = moduleid.Class{Members: members}
	}
	return v, nil
}

func (c *cloud) openGateway(ctx context.Context) error {
	chain, key, err := loadIdentity(c.state, "gateway")
	if err != nil {
		return err
	}
	identity, err := tlsconn.NewIdentity(tls.Certificate{Certificate: chain, PrivateKey: key})
	if err != nil {
		return err
	}
	if c.trust, err = tlsconn.NewTrustStore(tlsconn.TrustOptions{Roots: []*x509.Certificate{c.ca.cert}}); err != nil {
		return err
	}
	if err := c.revokeKnown(ctx); err != nil {
		return err
	}
	authorize, err := tlsconn.AllowIDs("spiffe://" + c.cfg.TrustDomain + "/node/*")
	if err != nil {
		return err
	}
	text, err := wire.ReadCapped(filepath.Join(c.state, "flows.json"), 1<<20)
	if err != nil {
		return err
	}
	policy, err := tlsconn.ParsePolicy(text)
	if err != nil {
		return fmt.Errorf("flows.json: %w", err)
	}
	flows, err := tlsconn.NewPolicyStore(policy)
	if err != nil {
		return err
	}
	c.gateway, err = tlsconn.NewGateway(tlsconn.GatewayConfig{
		Config: tlsconn.Config{
			Identity: identity, Trust: c.trust, Authorize: authorize, Policy: flows, RequirePQ: true, Logger: c.log,
			Audit: c.audit, Events: c.tunnelEvent,
		},
		Verify: attestation(c.verifier, c.fleet, c.log),
	})
	if err != nil {
		return err
	}
	spool, err := loadAge(filepath.Join(c.state, "spool.key"))
	if err != nil {
		return err
	}
	lease := time.Duration(c.cfg.LeaseSeconds) * time.Second
	for name, h := range map[string]http.Handler{
		wire.ServiceIngest: ingestHandler(c.store, spool, c.fleet, c.log),
		wire.ServiceKeys:   sharesHandler(newShares(c.store, devices{c.store.System()}, lease, c.log), c.fleet),
		wire.ServiceTUF:    http.FileServerFS(os.DirFS(filepath.Join(c.state, "tuf"))),
	} {
		if err := c.gateway.Handle(name, h); err != nil {
			return err
		}
	}
	return nil
}

// revokeKnown makes the tunnel's trust store agree with the registry.
func (c *cloud) revokeKnown(ctx context.Context) error {
	var revoked []tlsconn.Revocation
	for after := (registry.DeviceID{}); ; {
		page, err := devices{c.store.System()}.List(ctx, after, 1000)
		if err != nil {
			return err
		}
		for _, d := range page {
			after = d.ID
			c.fleet.setState(d.ID.String(), "/node/"+d.ID.String(), string(d.State), d.Reason)
			if d.State == registry.Revoked {
				id := tlsconn.ID{TrustDomain: c.cfg.TrustDomain, Path: "/node/" + d.ID.String()}
				revoked = append(revoked, tlsconn.Revocation{ID: id, Reason: d.Reason})
			}
		}
		if len(page) == 0 {
			return c.trust.SetRevoked(revoked)
		}
	}
}

func (c *cloud) audit(r tlsconn.FlowRecord) {
	if r.Verdict != tlsconn.VerdictAllowed {
		c.log.Warn("flow refused", "event", "flow.refused", "node", r.Node.String(), "target", r.Target, "rule", r.Rule, "decided_by", string(r.DecidedBy), "reason", r.Reason)
		return
	}
	c.log.Info("flow ended", "event", "flow.ended", "node", r.Node.String(), "target", r.Target, "rule", r.Rule, "up", r.Up, "down", r.Down, "end", r.End)
}

func (c *cloud) tunnelEvent(e tlsconn.TunnelEvent) {
	id := e.Peer.Path
	if i := strings.LastIndexByte(id, '/'); i >= 0 {
		id = id[i+1:]
	}
	if id == "" {
		return
	}
	switch e.Type {
	case "cut", "down":
		c.fleet.setLink(id, "tunnel", false, e.Type+": "+e.Reason)
	}
}

// run serves until ctx ends.
func (c *cloud) run(ctx context.Context, loopbackPage string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	enrollTLS, apiTLS, err := c.serverTLS()
	if err != nil {
		return err
	}
	a := &admin{store: c.store, registrar: c.registrar, trust: c.trust, gateway: c.gateway, fleet: c.fleet, domain: c.cfg.TrustDomain, log: c.log}
	api := http.NewServeMux()
	api.Handle("/v1/admin/", a.handler())
	api.HandleFunc("GET /v1/records", queryHandler(c.store, c.log))
	api.Handle("/", a.operator(func(w http.ResponseWriter, r *http.Request, _ tenantstore.Principal) error {
		page(c.fleet, c.log).ServeHTTP(w, r)
		return nil
	}))
	servers := []struct {
		name, addr string
		tls        *tls.Config
		h          http.Handler
	}{
		{"enrol", c.cfg.Enroll, enrollTLS, limited(maxEnrolments, enrollHandler(c.registrar, c.fleet, c.log))},
		{"api", c.cfg.API, apiTLS, api},
	}
	if loopbackPage != "" {
		servers = append(servers, struct {
			name, addr string
			tls        *tls.Config
			h          http.Handler
		}{"page", loopbackPage, nil, page(c.fleet, c.log)})
	}
	for _, s := range servers {
		ln, err := net.Listen("tcp", s.addr)
		if err != nil {
			return wire.Unavailable(err, "is another instance running on this address?")
		}
		if s.tls != nil {
			ln = tls.NewListener(ln, s.tls)
		}
		srv := &http.Server{Handler: s.h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 60 * time.Second,
			IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug)}
		go func() { cancel(srv.Serve(ln)) }()
		defer srv.Close()
		c.log.Info("listening", "event", "cloud.listening", "service", s.name, "address", ln.Addr().String())
	}
	ln, err := net.Listen("tcp", c.cfg.Gateway)
	if err != nil {
		return wire.Unavailable(err, "is another instance running on this address?")
	}
	go func() { cancel(c.gateway.Serve(ctx, ln)) }()
	go c.sweep(ctx)
	c.log.Info("listening", "event", "cloud.ready", "service", "gateway", "address", ln.Addr().String())

	<-ctx.Done()
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	err = errors.Join(c.gateway.Shutdown(stop), c.store.Close(stop))
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		err = errors.Join(cause, err)
	}
	return err
}

// sweep drops challenges that nobody answered.
func (c *cloud) sweep(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Minute):
			if err := (challenges{c.store.System()}).sweep(ctx, time.Now()); err != nil && ctx.Err() == nil {
				c.log.Warn("sweep of challenges", "event", "sweep.failed", "error", err.Error())
			}
		}
	}
}

func (c *cloud) serverTLS() (enroll, api *tls.Config, err error) {
	chain, key, err := loadIdentity(c.state, "gateway")
	if err != nil {
		return nil, nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(c.ca.cert)
	cert := []tls.Certificate{{Certificate: chain, PrivateKey: key}}
	enroll = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: cert}
	api = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: cert, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, SessionTicketsDisabled: true}
	return enroll, api, nil
}

func loadIdentity(state, name string) ([][]byte, crypto.Signer, error) {
	cert, err := loadCert(filepath.Join(state, name+".crt"))
	if err != nil {
		return nil, nil, err
	}
	key, err := loadKey(filepath.Join(state, name+".key"))
	return [][]byte{cert.Raw}, key, err
}

func loadAge(name string) (age.Identity, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	id, err := age.ParseHybridIdentity(strings.TrimSpace(string(data)))
	if err != nil {
		return nil, fmt.Errorf("%s: not an age identity", name) // the cause would quote it
	}
	return id, nil
}

// loadCerts reads every PEM file of a directory.
func loadCerts(dir string) ([]*x509.Certificate, error) {
	names, err := fs.Glob(os.DirFS(dir), "*.pem")
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for _, n := range names {
		cert, err := loadCert(filepath.Join(dir, n))
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	return certs, nil
}
