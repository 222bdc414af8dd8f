package city

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/moduleid/revocation"
	"github.com/trusttree/trusttree/tenantstore"
)

// Operator speaks to the cloud's API with a client certificate.
type Operator struct {
	c *City
}

// client returns an HTTPS client with one of the certificates in the state
// directory of the first instance.
func (o *Operator) client(name string) (*http.Client, error) {
	state := o.c.Clouds[0].State
	cert, err := tls.LoadX509KeyPair(filepath.Join(state, name+".crt"), filepath.Join(state, name+".key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(state, "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &http.Client{
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, MinVersion: tls.VersionTLS13},
			DialContext:     o.c.cfg.Dial, DisableKeepAlives: true,
		},
		Timeout: 20 * time.Second,
	}, nil
}

// Call sends a request to the API of an instance as the operator; an answer of
// 300 or more is an error.
func (o *Operator) Call(ctx context.Context, cloud int, method, path string, body []byte) ([]byte, error) {
	return o.as(ctx, "operator", cloud, method, path, body)
}

// As does it as the tenant's service of that name.
func (o *Operator) As(ctx context.Context, tenant string, cloud int, method, path string) ([]byte, error) {
	return o.as(ctx, "issued-"+tenant, cloud, method, path, nil)
}

func (o *Operator) as(ctx context.Context, name string, cloud int, method, path string, body []byte) ([]byte, error) {
	client, err := o.client(name)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+o.c.Clouds[cloud].API+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	rsp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer rsp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(rsp.Body, 64<<20))
	if err == nil && rsp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s: %s", method, req.URL.Path, rsp.Status, strings.TrimSpace(string(data)))
	}
	return data, err
}

// CreateTenant makes a tenant, and a certificate for its service.
func (o *Operator) CreateTenant(ctx context.Context, name string) error {
	if _, err := o.Call(ctx, 0, http.MethodPut, "/v1/admin/tenants/"+name, nil); err != nil {
		return err
	}
	issue := exec.CommandContext(ctx, filepath.Join(o.c.cfg.Bin, "cloud"), "issue", "-state", o.c.Clouds[0].State, "-name", "tenant/"+name)
	if out, err := issue.CombinedOutput(); err != nil {
		return fmt.Errorf("cloud issue: %w\n%s", err, out)
	}
	return nil
}

// Assign says, under the owner's signature, which stream of which node belongs
// to which tenant. It replaces what was assigned before.
func (o *Operator) Assign(ctx context.Context, devices ...string) error {
	owner, err := LoadKey(filepath.Join(o.c.Clouds[0].State, "owner.key"))
	if err != nil {
		return err
	}
	o.c.serial++
	a := tenantstore.Assignments{
		Version: 1, Store: Domain, Serial: o.c.serial, Expires: time.Now().Add(24 * time.Hour).UTC(),
		Grants: []tenantstore.Grant{{Subject: "spiffe://" + Domain + "/operator", Roles: []tenantstore.Role{tenantstore.RoleControl}}},
	}
	for _, t := range o.c.cfg.Tenants {
		for _, device := range devices {
			a.Grants = append(a.Grants, tenantstore.Grant{Subject: "spiffe://" + Domain + "/node/" + device, Stream: t.Stream, Tenant: tenantstore.ID(t.Name), Roles: []tenantstore.Role{tenantstore.RoleIngest}})
		}
		a.Grants = append(a.Grants, tenantstore.Grant{Subject: "spiffe://" + Domain + "/tenant/" + t.Name, Tenant: tenantstore.ID(t.Name), Roles: []tenantstore.Role{tenantstore.RoleRead}})
	}
	signed, err := tenantstore.SignAssignments(a, owner)
	if err != nil {
		return err
	}
	_, err = o.Call(ctx, 0, http.MethodPut, "/v1/admin/assignments", signed)
	return err
}

// ReviseModules puts a list of revoked modules into force, under the owner's
// signature; ids are module IDs, of modules or of their CAs.
func (o *Operator) ReviseModules(ctx context.Context, sequence uint64, ids ...string) error {
	owner, err := LoadKey(filepath.Join(o.c.Clouds[0].State, "owner.key"))
	if err != nil {
		return err
	}
	signed, err := revocation.Sign(revocation.List{Version: 1, Sequence: sequence, Issued: time.Now().UTC(), IDs: ids}, owner)
	if err != nil {
		return err
	}
	_, err = o.Call(ctx, 0, http.MethodPut, "/v1/admin/module-revocations", signed)
	return err
}

// Records asks an instance as a tenant's service for one stream, with what the
// API answered.
func (o *Operator) Records(ctx context.Context, cloud int, tenant, stream string) ([]wire.Sample, []byte, error) {
	var all []wire.Sample
	var first []byte
	for path := "/v1/records?stream=" + stream; path != ""; {
		data, err := o.As(ctx, tenant, cloud, http.MethodGet, path)
		if err != nil {
			return nil, nil, err
		}
		var part []wire.Sample
		if err := json.Unmarshal(data, &part); err != nil {
			return nil, nil, err
		}
		if first == nil {
			first = data
		}
		all, path = append(all, part...), ""
		if len(part) >= pageSize {
			next := part[len(part)-1].Time.Add(1)
			path = "/v1/records?stream=" + stream + "&from=" + next.UTC().Format(time.RFC3339Nano)
		}
	}
	return all, first, nil
}

// pageSize is how many records the API answers at once.
const pageSize = 10000

// LoadKey reads a private key in PEM.
func LoadKey(name string) (crypto.Signer, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM block", name)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	return key.(crypto.Signer), nil
}

// NewKey makes a key and writes it to a file.
func NewKey(name string) (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}
