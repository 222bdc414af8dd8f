package main

import (
	"context"
	"path/filepath"
	"time"

	"github.com/trusttree/trusttree/internal/city"
)

// demo is everything that the demo runs: a city with one cloud and one node.
type demo struct {
	dir     string
	started time.Time
	built   time.Time
	keep    bool // leave the node in good order

	city *city.City
	node *city.Node
	// Forwards of the node to destinations that are not allowed.
	deniedByNode, deniedByCloud string
}

// tenants and the streams that are theirs.
var tenants = []city.Tenant{{Name: "lighting", Stream: "lamp"}, {Name: "environment", Stream: "no2"}}

func (d *demo) path(elem ...string) string { return filepath.Join(append([]string{d.dir}, elem...)...) }

func (d *demo) cloud() *city.Cloud { return d.city.Clouds[0] }

// build compiles the real binaries: the demo runs what a vendor would deploy.
func (d *demo) build(ctx context.Context) error {
	if err := city.Build(ctx, d.path("bin")); err != nil {
		return err
	}
	d.built = time.Now()
	ok("examples/node and examples/cloud, %.1f s", time.Since(d.started).Seconds())
	return nil
}

// found makes the parties: TPM maker, module makers, and the cloud with its
// keys, operators and tenants.
func (d *demo) found(ctx context.Context) (err error) {
	d.city, err = city.Found(ctx, city.Config{Dir: d.dir, Bin: d.path("bin"), Tenants: tenants})
	if err != nil {
		return err
	}
	ok("a maker of TPMs with EK certificates, makers of modules with crypto chips")
	if err := d.city.StartCloud(ctx, 0); err != nil {
		return err
	}
	ok("a cloud with its own CA, TUF repository and audit log; operator page http://%s/", d.cloud().Page)
	if err := d.city.CreateTenants(ctx); err != nil {
		return err
	}
	ok("two tenants, %s and %s, each with an instance and a key of its own", tenants[0].Name, tenants[1].Name)
	return nil
}

func (d *demo) close() error {
	if d.city == nil {
		return nil
	}
	return d.city.Close()
}
