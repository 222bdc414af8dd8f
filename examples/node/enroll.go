package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/bootid"
	"github.com/trusttree/trusttree/examples/wire"
)

// maxEventLog bounds what is sent of the firmware's log, in bytes.
const maxEventLog = 4 << 20

// identify opens the TPM's identity. The endorsement key is pinned by its name
// from the first enrolment on; before that, its certificate must be of a maker
// in tpm_makers.
func (n *node) identify(ctx context.Context) error {
	c := attest.NodeConfig{
		Log: n.log,
		Collectors: []attest.Collector{
			attest.FileCollector(wire.TypeEventLog, n.cfg.EventLog, maxEventLog),
		},
	}
	if len(n.cfg.Modules) > 0 {
		c.Collectors = append(c.Collectors, n.collectModules)
	}
	if n.cfg.IMALog != "" {
		c.Collectors = append(c.Collectors, attest.FileCollector(wire.TypeIMALog, n.cfg.IMALog, wire.MaxFrame/2))
	}
	if n.cfg.BootID != "none" {
		c.Collectors = append(c.Collectors, attest.FileCollector(bootid.MediaType, n.cfg.BootID, 64))
	}
	pin, err := wire.ReadCapped(n.pinFile(), 256)
	switch {
	case err == nil:
		if c.EKName, err = hex.DecodeString(strings.TrimSpace(string(pin))); err != nil {
			return fmt.Errorf("%s: %w", n.pinFile(), err)
		}
	case errors.Is(err, os.ErrNotExist):
		makers, err := readPEM(n.cfg.TPMMakers)
		if err != nil {
			return err
		}
		c.Endorsers.Anchors = makers
	default:
		return err
	}
	if n.attest, err = attest.Open(ctx, n.tpm, c); err != nil {
		return err
	}
	n.prove("tpm", fmt.Sprintf("device %s, EK template %s, maker %s", n.attest.Device(), n.attest.EndorsementKey().Template,
		n.attest.EndorsementKey().Certificate.Issuer.CommonName))
	return nil
}

func (n *node) pinFile() string { return filepath.Join(n.cfg.State, "ek-name") }

// enroll makes sure that the node has a certificate for its TLS key: it uses
// the one in the TPM's NV while that is good for another hour, else it enrols.
func (n *node) enroll(ctx context.Context) error {
	if cert, err := n.attest.Certificate(ctx); err == nil && time.Until(cert.Leaf.NotAfter) > time.Hour {
		n.prove("identity", "certificate in TPM NV, until "+cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
		return nil
	}
	return n.enrollAnew(ctx)
}

// enrollAnew enrols whatever certificate there is, with the token that
// bootstrap.json holds now.
func (n *node) enrollAnew(ctx context.Context) error {
	if boot, err := wire.LoadBootstrap(n.cfg.Bootstrap); err == nil {
		n.boot.Token = boot.Token
	}
	roots, err := n.boot.RootPool()
	if err != nil {
		return err
	}
	client, err := n.cloudClient()
	if err != nil {
		return err
	}
	var enrollment *attest.Enrollment
	for _, url := range n.boot.EnrollURLs() { // any instance will do
		if enrollment, err = n.enrollAt(ctx, client, url); err == nil {
			break
		}
	}
	if err != nil {
		return err
	}
	if err := n.attest.StoreCertificate(ctx, enrollment, roots); err != nil {
		return err
	}
	if err := writeFile(n.pinFile(), []byte(hex.EncodeToString(n.attest.EndorsementKey().Name)+"\n")); err != nil {
		return err
	}
	n.prove("identity", "enrolled by EK certificate and credential activation; certificate in TPM NV, until "+enrollment.Expires.UTC().Format(time.RFC3339))
	return nil
}

// cloudClient speaks to the enrolment service, which a root in bootstrap.json
// authenticates.
func (n *node) cloudClient() (*http.Client, error) {
	roots, err := n.boot.RootPool()
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, DisableKeepAlives: true},
		Timeout:   time.Minute,
		// The token goes to the address in bootstrap.json and to no other.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// enrollAt enrols at one instance of the cloud.
func (n *node) enrollAt(ctx context.Context, client *http.Client, url string) (*attest.Enrollment, error) {
	challenge, err := post[attest.ActivationChallenge](ctx, client, url+"/v1/enroll/begin", n.attest.EnrollmentRequest([]byte(n.boot.Token)))
	if err != nil {
		return nil, err
	}
	key, err := n.attest.DeviceKey(ctx)
	if err != nil {
		return nil, err
	}
	answer, err := n.attest.Activate(ctx, challenge, key)
	if err != nil {
		return nil, err
	}
	return post[attest.Enrollment](ctx, client, url+"/v1/enroll/complete", answer)
}

func post[Out, In attest.Message](ctx context.Context, client *http.Client, url string, in *In) (*Out, error) {
	body, err := attest.Marshal(in)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	rsp, err := client.Do(req)
	if err != nil {
		return nil, wire.Unavailable(err, "is the cloud reachable, and is the node's clock right?")
	}
	defer rsp.Body.Close()
	data, err := wire.ReadAll(rsp.Body, attest.MaxMessage, "answer of "+url)
	if err != nil {
		return nil, err
	}
	if rsp.StatusCode != http.StatusOK {
		err := fmt.Errorf("%s: %s: %s", url, rsp.Status, strings.TrimSpace(string(data)))
		if rsp.StatusCode == http.StatusForbidden {
			return nil, wire.Refused(err, "the cloud does not take this TPM or its token; its operator's log says why")
		}
		return nil, err
	}
	return attest.Parse[Out](data)
}
