package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"filippo.io/age"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/moduleid/revocation"
	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tlsconn"
	"github.com/trusttree/trusttree/update/repository"
)

// initOptions are the flags of `cloud init`.
type initOptions struct {
	state, domain, host string
	enroll, gateway     int
	api                 int
	tokenLife           time.Duration
	postgres, instance  string
}

// initState makes a state directory (0700, files 0600): the CA, the gateway's
// and the first operator's certificates, the owner's keys, a TUF repository,
// the policies, and bootstrap.json for nodes. It never touches a directory
// that is there: keys are not replaced by accident.
func initState(ctx context.Context, o initOptions, out io.Writer) (err error) {
	o.state = filepath.Clean(o.state)
	dir, err := newDirectory(o.state)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	s := &newState{dir: dir, domain: o.domain}
	if s.ca, err = newAuthority(o.domain); err != nil {
		return err
	}
	s.cert("ca", s.ca.cert, s.ca.key)
	s.identity("gateway", x509.ExtKeyUsageServerAuth, []string{o.host})
	s.identity("operator", x509.ExtKeyUsageClientAuth, nil)
	owner, policy := s.key("owner"), s.key("policy")
	s.mkdir("tpm-makers", "module-makers", "reference", "keys")
	cfg := &config{
		Version: 1, TrustDomain: o.domain,
		Enroll: addr(o.host, o.enroll), Gateway: addr(o.host, o.gateway), API: addr(o.host, o.api),
		PCRs: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 14}, Bank: "sha256", AttestSeconds: 600, LeaseSeconds: 900,
		Connectors: map[string]string{}, Postgres: o.postgres,
	}
	if o.postgres != "" {
		cfg.Instance = o.instance
	}
	if err := cfg.check(); err != nil {
		return wire.Usage("%w", err)
	}
	s.json("cloud.json", cfg)
	s.json("flows.json", nodeFlows(o.domain))
	spool, recovery := s.age("spool"), s.age("recovery")
	root := s.repository(ctx)
	if s.err != nil {
		return s.err
	}

	revocations, err := revocation.Sign(revocation.List{Version: 1, Sequence: 1, Issued: time.Now().UTC()}, owner)
	if err != nil {
		return err
	}
	s.file("module-revocations", revocations)
	assignments, err := tenantstore.SignAssignments(tenantstore.Assignments{
		Version: 1, Store: o.domain, Serial: 1, Expires: time.Now().Add(serviceLifetime).UTC(),
		Grants: []tenantstore.Grant{{Subject: "spiffe://" + o.domain + "/operator", Roles: []tenantstore.Role{tenantstore.RoleControl}}},
	}, owner)
	if err != nil {
		return err
	}
	s.file("assignments.json", assignments)

	policySPKI, err := x509.MarshalPKIXPublicKey(policy.Public())
	if err != nil {
		return err
	}
	ownerSPKI, err := x509.MarshalPKIXPublicKey(owner.Public())
	if err != nil {
		return err
	}
	boot := wire.Bootstrap{
		Version: wire.BootstrapVersion, TrustDomain: o.domain, Roots: string(certPEM(s.ca.cert)),
		EnrollURL: "https://" + cfg.Enroll, Gateway: cfg.Gateway, GatewayID: "spiffe://" + o.domain + "/gateway",
		TUFRoot: root, PolicyKey: policySPKI, OwnerKey: ownerSPKI, SpoolTo: spool, RecoverTo: recovery,
		ModuleRevocations: revocations, Token: rand.Text(), TokenExpiry: time.Now().Add(o.tokenLife).UTC().Truncate(time.Second),
	}
	if err := s.token(ctx, cfg, owner, boot.Token, boot.TokenExpiry); err != nil {
		return err
	}
	s.json("bootstrap.json", boot)
	s.sync("", "keys")
	if err := s.publish(o.state); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s is ready.\n"+
		"  bootstrap.json   for one node; its token works once, until %s\n"+
		"  operator.crt     the first operator's certificate and key\n"+
		"  tpm-makers       put the TPM makers' certificates here, in PEM\n"+
		"Move owner.key, policy.key, recovery.key and keys/root.key to where you keep offline keys; the cloud runs without them.\n"+
		"Next: cloud serve -state %s\n", o.state, boot.TokenExpiry.Format(time.DateTime), o.state)
	return nil
}

func addr(host string, port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }

// nodeFlows is what the gateway lets nodes do at first: reach the services that
// the cloud serves itself, and nothing else.
func nodeFlows(domain string) tlsconn.Policy {
	return tlsconn.Policy{Version: 1, Serial: 1, Rules: []tlsconn.Rule{{
		Name: "cloud-services", Action: tlsconn.Allow, Peers: []string{"spiffe://" + domain + "/node/*"},
		Direction: tlsconn.ToCloud, Proto: tlsconn.TCP,
		Services: []string{wire.ServiceIngest, wire.ServiceTUF, wire.ServiceKeys, wire.ServiceReport},
	}}}
}

// newState writes a state directory; the first error sticks.
type newState struct {
	dir, domain string
	ca          *authority
	err         error
}

// file writes a file that is not there yet, durably once its directory is
// synced.
func (s *newState) file(name string, data []byte) {
	if s.err != nil {
		return
	}
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		s.err = err
		return
	}
	_, err = f.Write(data)
	s.err = errors.Join(err, f.Sync(), f.Close())
}

// sync makes the entries of directories durable.
func (s *newState) sync(names ...string) {
	for _, n := range names {
		d, err := os.Open(filepath.Join(s.dir, n))
		if err == nil {
			err = errors.Join(d.Sync(), d.Close())
		}
		s.err = errors.Join(s.err, err)
	}
}

func (s *newState) json(name string, v any) {
	data, err := json.MarshalIndent(v, "", "  ")
	s.err = errors.Join(s.err, err)
	s.file(name, append(data, '\n'))
}

func (s *newState) mkdir(names ...string) {
	for _, n := range names {
		if s.err == nil {
			s.err = os.Mkdir(filepath.Join(s.dir, n), 0o700)
		}
	}
}

func (s *newState) cert(name string, cert *x509.Certificate, key crypto.PrivateKey) {
	data, err := keyPEM(key)
	s.err = errors.Join(s.err, err)
	s.file(name+".key", data)
	s.file(name+".crt", certPEM(cert))
}

func (s *newState) identity(name string, usage x509.ExtKeyUsage, hosts []string) {
	cert, key, err := s.ca.issue(s.domain, name, usage, hosts)
	if err != nil {
		s.err = errors.Join(s.err, err)
		return
	}
	s.cert(name, cert, key)
}

// key makes a key, and a file of its public half that stays when the key is
// moved offline.
func (s *newState) key(name string) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	s.err = errors.Join(s.err, err)
	data, err := keyPEM(key)
	s.err = errors.Join(s.err, err)
	s.file(name+".key", data)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	s.err = errors.Join(s.err, err)
	s.file(name+".pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))
	return key
}

// age makes an age identity (hybrid, post-quantum) and returns its recipient.
func (s *newState) age(name string) string {
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		s.err = errors.Join(s.err, err)
		return ""
	}
	s.file(name+".key", []byte(id.String()+"\n"))
	return id.Recipient().String()
}

// repository makes the TUF repository and returns its first root.
func (s *newState) repository(ctx context.Context) []byte {
	if s.err != nil {
		return nil
	}
	role := func(name string) (repository.Role, crypto.Signer) {
		k := s.key(filepath.Join("keys", name))
		return repository.Role{Keys: []crypto.PublicKey{k.Public()}}, k
	}
	root, rootKey := role("root")
	targets, targetsKey := role("targets")
	snapshot, snapshotKey := role("snapshot")
	timestamp, timestampKey := role("timestamp")
	s.mkdir("tuf")
	if s.err != nil {
		return nil
	}
	repo, err := repository.Create(ctx, repository.DirStore(filepath.Join(s.dir, "tuf")),
		repository.Config{Root: root, Targets: targets, Snapshot: snapshot, Timestamp: timestamp},
		rootKey, targetsKey, snapshotKey, timestampKey)
	if err != nil {
		s.err = err
		return nil
	}
	data, err := repo.Root(ctx)
	s.err = err
	return data
}

// token opens the store for the first time and puts the token into it.
func (s *newState) token(ctx context.Context, cfg *config, owner crypto.Signer, token string, expires time.Time) error {
	c, err := storeConfig(ctx, s.dir, cfg, owner.Public(), s.ca.cert)
	if err != nil {
		return err
	}
	store, err := tenantstore.Open(ctx, c)
	if err != nil {
		return err
	}
	err = tokens{store.System()}.add(ctx, []byte(token), expires)
	return errors.Join(err, store.Close(ctx))
}

// joinState makes the state directory of a further instance beside the first
// one: its own addresses, gateway certificate and audit log, and the way to
// the shared store. Keys, releases and reference values stay where they are,
// in a directory that all instances read.
func joinState(o initOptions, from string, out io.Writer) (err error) {
	from, err = filepath.Abs(from)
	if err != nil {
		return err
	}
	first, err := loadConfig(from)
	if err != nil {
		return err
	}
	if first.Postgres == "" {
		return wire.Usage("%s keeps its store for itself: further instances need one that was made with cloud init -postgres", from)
	}
	if o.instance == first.Instance {
		return wire.Usage("-instance %s is the first instance's name", o.instance)
	}
	ca, err := loadAuthority(first, from)
	if err != nil {
		return err
	}
	cfg := *first
	cfg.Instance, cfg.Shared, cfg.Status = o.instance, from, ""
	cfg.Enroll, cfg.Gateway, cfg.API = addr(o.host, o.enroll), addr(o.host, o.gateway), addr(o.host, o.api)
	if err := cfg.check(); err != nil {
		return wire.Usage("%w", err)
	}
	store, err := wire.ReadCapped(filepath.Join(from, "store", "store.json"), maxConfig)
	if err != nil {
		return err
	}
	dir, err := newDirectory(o.state)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	s := &newState{dir: dir, domain: cfg.TrustDomain, ca: ca}
	s.identity("gateway", x509.ExtKeyUsageServerAuth, []string{o.host})
	s.json("cloud.json", &cfg)
	s.mkdir("store")
	s.file(filepath.Join("store", "store.json"), store)
	s.sync("", "store")
	if err := s.publish(o.state); err != nil {
		return err
	}
	if cfg.Transit == nil {
		fmt.Fprintf(out, "It keeps the tenants' keys with the first instance, in %s: on one machine, or over NFS 4, whose locks reach both.\n"+
			"On a machine of its own, give both instances a transit secrets engine first: \"transit\" in cloud.json.\n", filepath.Join(from, "kek"))
	}
	fmt.Fprintf(out, "%s is ready: instance %s of the cloud in %s.\n"+
		"Add to each node's bootstrap.json: \"more_gateways\": [%q], \"more_enroll_urls\": [%q]\n"+
		"Next: cloud serve -state %s\n", o.state, o.instance, from, cfg.Gateway, "https://"+cfg.Enroll, o.state)
	return nil
}

// newDirectory makes a directory beside the one that state will be, so that a
// cut leaves none or all of it.
func newDirectory(state string) (string, error) {
	state = filepath.Clean(state)
	if _, err := os.Lstat(state); !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			return "", err
		}
		return "", wire.Usage("%s exists: choose a new directory, or remove that one if you mean to lose its keys", state)
	}
	return os.MkdirTemp(filepath.Dir(state), filepath.Base(state)+".new-*")
}

// publish gives the finished directory its name.
func (s *newState) publish(state string) error {
	if s.err != nil {
		return s.err
	}
	if err := os.Rename(s.dir, filepath.Clean(state)); err != nil {
		return err
	}
	s.dir = filepath.Dir(filepath.Clean(state))
	s.sync("")
	return s.err
}
