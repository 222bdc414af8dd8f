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
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/ca"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/registry"
	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/atecc"
	"github.com/trusttree/trusttree/moduleid/spdm"
	"github.com/trusttree/trusttree/tenantstore"
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
	mon   *monitor
	usage *usage

	registrar *attest.Registrar
	verifier  *attest.Verifier
	gateway   *tlsconn.Gateway

	destinations *destinations
	modules      *moduleList
	references   *references
	recheck      chan struct{} // every node is to prove itself anew

	ready atomic.Bool // all listeners are up
}

func newCloud(ctx context.Context, state string, cfg *config, logs slog.Handler) (_ *cloud, err error) {
	c := &cloud{state: state, cfg: cfg, usage: newUsage(), fleet: newFleet(cfg.Instance, time.Now), recheck: make(chan struct{}, 1)}
	c.mon = newMonitor(c.fleet.touched)
	c.log = c.mon.logger(logs)
	if c.ca, err = loadAuthority(cfg, state); err != nil {
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
	if err := c.openAttestation(ctx); err != nil {
		return nil, err
	}
	if err := c.openGateway(ctx); err != nil {
		return nil, err
	}
	c.mon.observe(c.fleet, c.gateway.Peers, c.modules.inForce.Issued)
	return c, nil
}

// file returns the path of a file of the state.
func (c *cloud) file(name ...string) string { return c.cfg.file(c.state, name...) }

// tuf is the repository that nodes are served.
func (c *cloud) tuf() fs.FS { return os.DirFS(c.file("tuf")) }

func (c *cloud) openStore(ctx context.Context) error {
	owner, err := loadPublic(c.file("owner.pub"))
	if err != nil {
		return err
	}
	cfg, err := storeConfig(ctx, c.state, c.cfg, owner, c.ca.cert)
	if err != nil {
		return err
	}
	cfg.Logger = c.log
	c.store, err = tenantstore.Open(ctx, cfg)
	if errors.Is(err, tenantstore.ErrBusy) {
		return wire.Unavailable(err, "does another cloud serve this state directory? -check reads the store, too: stop the cloud first")
	}
	if err != nil {
		return err
	}
	name := c.file("assignments.json")
	signed, err := wire.ReadCapped(name, maxAssignments)
	if err == nil {
		if err = c.store.Assign(ctx, signed); errors.Is(err, tenantstore.ErrRollback) {
			err = nil // newer ones came over the operators' API
		} else if err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
	}
	if err != nil {
		err = errors.Join(err, c.store.Close(context.WithoutCancel(ctx)))
	}
	return err
}

func (c *cloud) openAttestation(ctx context.Context) error {
	makers, err := loadCerts(c.file("tpm-makers"))
	if err != nil {
		return err
	}
	if len(makers) == 0 {
		return wire.Usage("%s is empty: put the certificates of the TPM makers whose nodes may enrol there, as *.pem", c.file("tpm-makers"))
	}
	issuer, err := ca.New(c.ca.cert, c.ca.key)
	if err != nil {
		return err
	}
	system := c.store.System()
	endorsers := attest.Endorsers{Anchors: makers}
	c.registrar, err = attest.NewRegistrar(attest.RegistrarConfig{
		Endorsers: endorsers, Admit: admission(tokens{system}, devices{t: system}, time.Now),
		Devices: devices{t: system}, Challenges: challenges{system},
		Issuer: issuer, TrustDomain: c.cfg.TrustDomain, Log: c.log,
	})
	if err != nil {
		return err
	}
	policyKey, err := loadPublic(c.file("policy.pub"))
	if err != nil {
		return err
	}
	c.references = &references{key: policyKey, dir: c.file("reference"), tuf: c.tuf(), floors: &floors{system.Collection(ownerCollection)}, log: c.log, told: map[string]string{}}
	modules, err := c.moduleVerifier(ctx)
	if err != nil {
		return err
	}
	bank := crypto.SHA256
	if c.cfg.Bank == "sha384" {
		bank = crypto.SHA384
	}
	c.verifier, err = attest.NewVerifier(attest.VerifierConfig{
		Endorsers: endorsers, Devices: devices{t: system, parsed: &parsedDevices{}},
		// A challenge is answered on the stream that it was given on, so it need
		// not outlive the tunnel; those of enrolments may go to another instance.
		Challenges: registry.NewMemoryChallenges(0, nil),
		PCRs:       []quote.Selection{{Bank: bank, PCRs: c.cfg.PCRs}},
		Appraisers: []attest.Appraiser{bootAppraiser(c.references.current), moduleAppraiser(modules)},
		ResultTTL:  time.Duration(c.cfg.AttestSeconds) * time.Second, Log: c.log,
	})
	return err
}

func (c *cloud) moduleVerifier(ctx context.Context) (*moduleid.Verifier, error) {
	v := &moduleid.Verifier{
		Schemes: []moduleid.Scheme{atecc.Scheme(), spdm.Scheme{}},
		Roots:   x509.NewCertPool(), Classes: map[string]moduleid.Class{}, Connectors: map[string]moduleid.Connector{},
	}
	owner, err := loadPublic(c.file("owner.pub"))
	if err != nil {
		return nil, err
	}
	if c.modules, err = openModuleList(ctx, c.store.System(), owner, c.file("module-revocations"), c.log); err != nil {
		return nil, err
	}
	v.Revocations = c.modules.inForce
	connect := func(connector, class string, required bool) error {
		v.Connectors[connector] = moduleid.Connector{Classes: []string{class}, Required: required}
		if _, ok := v.Classes[class]; ok {
			return nil
		}
		certs, err := loadCerts(c.file("module-makers", class))
		if err == nil && len(certs) == 0 {
			err = fmt.Errorf("%s holds no *.pem: whose modules are of this class?", c.file("module-makers", class))
		}
		if err != nil {
			return fmt.Errorf("module class %q: %w", class, err)
		}
		members := x509.NewCertPool()
		for _, cert := range certs {
			members.AddCert(cert)
			v.Roots.AddCert(cert)
		}
		v.Classes[class] = moduleid.Class{Members: members}
		return nil
	}
	for connector, class := range c.cfg.Connectors {
		err = errors.Join(err, connect(connector, class, true))
	}
	for connector, class := range c.cfg.OptionalConnectors {
		err = errors.Join(err, connect(connector, class, false))
	}
	if err != nil {
		return nil, err
	}
	return v, nil
}

func (c *cloud) openGateway(ctx context.Context) error {
	chain, key, err := loadIdentity(c.file("gateway.crt"), c.file("gateway.key"))
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
	if err := errors.Join(c.loadAllViews(ctx), c.revokeKnown(ctx)); err != nil {
		return err
	}
	authorize, err := tlsconn.AllowIDs("spiffe://" + c.cfg.TrustDomain + "/node/*")
	if err != nil {
		return err
	}
	text, err := wire.ReadCapped(c.file("flows.json"), 1<<20)
	if err != nil {
		return err
	}
	policy, err := tlsconn.ParsePolicy(text)
	if err != nil {
		return fmt.Errorf("flows.json: %w", err)
	}
	c.destinations = newDestinations(c.store.System(), c.cfg.Instance, c.cfg.MaxDestination, c.cfg.Postgres != "")
	flows, err := tlsconn.NewPolicyStore(policy)
	if err != nil {
		return err
	}
	c.gateway, err = tlsconn.NewGateway(tlsconn.GatewayConfig{
		Config: tlsconn.Config{
			Identity: identity, Trust: c.trust, Authorize: authorize, Policy: flows, RequirePQ: true, Logger: c.log,
			Audit: c.audit, Events: c.tunnelEvent, Fleet: c.destinations.take,
		},
		Verify: c.attestation(),
	})
	if err != nil {
		return err
	}
	spool, err := loadAge(c.file("spool.key"))
	if err != nil {
		return err
	}
	lease := time.Duration(c.cfg.LeaseSeconds) * time.Second
	for name, h := range map[string]http.Handler{
		wire.ServiceIngest: c.ingestHandler(spool),
		wire.ServiceKeys:   sharesHandler(newShares(c.store, devices{t: c.store.System()}, lease, c.log), c.fleet),
		wire.ServiceTUF:    http.FileServerFS(c.tuf()),
		wire.ServiceReport: newReports(c.fleet, func(id tlsconn.ID) int { return c.gateway.Reattest(id) }, c.log).handler(c.modules),
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
		page, err := devices{t: c.store.System()}.List(ctx, after, 1000)
		if err != nil {
			return err
		}
		for _, d := range page {
			after = d.ID
			if v, ok := c.fleet.node(d.ID.String()); !ok || v.State == "revoked" != (d.State == registry.Revoked) {
				c.fleet.setState(d.ID.String(), "/node/"+d.ID.String(), string(d.State), d.Reason)
			}
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
	c.mon.flows.WithLabelValues("up").Add(float64(r.Up))
	c.mon.flows.WithLabelValues("down").Add(float64(r.Down))
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
	operators := c.admin()
	pages := (&page{domain: c.cfg.TrustDomain, fleet: c.fleet, monitor: c.mon, usage: c.usage, tenants: c.store.Tenants, releases: c.releases, log: c.log}).handler()
	metrics := c.mon.handler()
	api := http.NewServeMux()
	api.Handle("/v1/admin/", operators.handler())
	api.HandleFunc("GET /v1/records", c.queryHandler())
	api.HandleFunc("GET /v1/audit", c.auditHandler())
	api.Handle("GET /metrics", operators.operator(func(w http.ResponseWriter, r *http.Request, _ tenantstore.Principal) error {
		metrics.ServeHTTP(w, r)
		return nil
	}))
	api.Handle("/", operators.operator(func(w http.ResponseWriter, r *http.Request, p tenantstore.Principal) error {
		pages.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), operatorKey{}, p)))
		return nil
	}))
	type server struct {
		name, addr string
		tls        *tls.Config
		h          http.Handler
	}
	servers := []server{
		{"enrol", c.cfg.Enroll, enrollTLS, limited(maxEnrolments, enrollHandler(c.registrar, c.fleet, c.modules, c.log))},
		{"api", c.cfg.API, apiTLS, api},
	}
	if loopbackPage != "" {
		servers = append(servers, server{"page", loopbackPage, nil, onLoopback(pages)})
	}
	if c.cfg.Status != "" {
		servers = append(servers, server{"status", c.cfg.Status, nil, onLoopback(c.statusHandler())})
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
	var loops sync.WaitGroup
	defer loops.Wait()
	for _, loop := range []func(context.Context){c.sweep, c.follow, c.destinations.run, c.recheckLoop} {
		loops.Go(func() { loop(ctx) })
	}
	c.ready.Store(true)
	wire.Notify("READY=1")
	loops.Go(func() { wire.Watchdog(ctx, c.alive) })
	c.log.Info("listening", "event", "cloud.ready", "service", "gateway", "address", ln.Addr().String())

	<-ctx.Done()
	c.ready.Store(false)
	wire.Notify("STOPPING=1")
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	err = c.gateway.Shutdown(stop)
	loops.Wait()
	err = errors.Join(err, c.flushViews(stop), c.store.Close(stop))
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		err = errors.Join(cause, err)
	}
	return err
}

// sweep drops challenges that nobody answered, what all instances have seen,
// and the trust in nodes that missed their deadline.
func (c *cloud) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			missed, err := c.verifier.Sweep(ctx)
			for _, d := range missed {
				c.log.Warn("a node did not attest in time", "event", "attest.missed", "node", d.String())
				c.fleet.setState(d.String(), "", "unreachable", "it did not attest before its deadline")
			}
			err = errors.Join(err, challenges{c.store.System()}.sweep(ctx, now), c.sweepChanges(ctx, now))
			if err != nil && ctx.Err() == nil {
				c.log.Warn("sweep of the store", "event", "sweep.failed", "error", err.Error())
			}
		}
	}
}

// sweepEvery is how often sweep looks.
const sweepEvery = 30 * time.Second

func (c *cloud) serverTLS() (enroll, api *tls.Config, err error) {
	chain, key, err := loadIdentity(c.file("gateway.crt"), c.file("gateway.key"))
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
