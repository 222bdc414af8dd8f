package main

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
	"github.com/trusttree/trusttree/tenantstore"
)

// tenants and the streams that are theirs.
var (
	tenants = []string{"lighting", "environment"}
	streams = []string{"lamp", "no2"}
)

// operator speaks to the cloud's API with a client certificate.
type operator struct {
	state, api string
	client     *http.Client
}

func newOperator(state, api string) (*operator, error) {
	client, err := clientFor(state, "operator")
	return &operator{state: state, api: api, client: client}, err
}

// clientFor returns an HTTPS client with one of the certificates in the state
// directory.
func clientFor(state, name string) (*http.Client, error) {
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
		Transport: &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, MinVersion: tls.VersionTLS13}},
		Timeout:   20 * time.Second,
	}, nil
}

func (o *operator) call(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	return call(ctx, o.client, method, "https://"+o.api+path, body)
}

func call(ctx context.Context, client *http.Client, method, url string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	rsp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer rsp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(rsp.Body, 4<<20))
	if err == nil && rsp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s: %s", method, req.URL.Path, rsp.Status, strings.TrimSpace(string(data)))
	}
	return data, err
}

// createTenant makes a tenant, and a certificate for its service.
func (o *operator) createTenant(ctx context.Context, name string) error {
	if _, err := o.call(ctx, http.MethodPut, "/v1/admin/tenants/"+name, nil); err != nil {
		return err
	}
	issue := exec.CommandContext(ctx, filepath.Join(filepath.Dir(o.state), "bin", "cloud"), "issue", "-state", o.state, "-name", "tenant/"+name)
	if out, err := issue.CombinedOutput(); err != nil {
		return fmt.Errorf("cloud issue: %w\n%s", err, out)
	}
	return nil
}

// assign says, under the owner's signature, which stream of which node belongs
// to which tenant.
func (o *operator) assign(ctx context.Context, device string) error {
	owner, err := loadKey(filepath.Join(o.state, "owner.key"))
	if err != nil {
		return err
	}
	a := tenantstore.Assignments{
		Version: 1, Store: domain, Serial: 2, Expires: time.Now().Add(24 * time.Hour).UTC(),
		Grants: []tenantstore.Grant{{Subject: "spiffe://" + domain + "/operator", Roles: []tenantstore.Role{tenantstore.RoleControl}}},
	}
	for i, t := range tenants {
		a.Grants = append(a.Grants,
			tenantstore.Grant{Subject: "spiffe://" + domain + "/node/" + device, Stream: streams[i], Tenant: tenantstore.ID(t), Roles: []tenantstore.Role{tenantstore.RoleIngest}},
			tenantstore.Grant{Subject: "spiffe://" + domain + "/tenant/" + t, Tenant: tenantstore.ID(t), Roles: []tenantstore.Role{tenantstore.RoleRead}})
	}
	signed, err := tenantstore.SignAssignments(a, owner)
	if err != nil {
		return err
	}
	_, err = o.call(ctx, http.MethodPut, "/v1/admin/assignments", signed)
	return err
}

// records asks as a tenant's service for one stream.
func (o *operator) records(ctx context.Context, tenant, stream string) ([]wire.Sample, []byte, error) {
	client, err := clientFor(o.state, "issued-"+tenant)
	if err != nil {
		return nil, nil, err
	}
	data, err := call(ctx, client, http.MethodGet, "https://"+o.api+"/v1/records?stream="+stream, nil)
	if err != nil {
		return nil, nil, err
	}
	var out []wire.Sample
	return out, data, json.Unmarshal(data, &out)
}

func loadKey(name string) (crypto.Signer, error) {
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

func newKey(name string) (crypto.Signer, error) {
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
