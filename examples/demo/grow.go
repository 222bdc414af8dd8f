package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/trusttree/trusttree/internal/city"
)

// links of the tree of trust in the order in which the node proves them.
var links = []struct{ name, title string }{
	{"tpm", "TPM"},
	{"modules", "modules"},
	{"identity", "identity"},
	{"system volume", "system volume"},
	{"attested", "boot attested"},
	{"tunnel", "tunnel"},
	{"data volume", "data volume"},
	{"telemetry lamp", "tenant lighting"},
	{"telemetry no2", "tenant environment"},
}

// grow makes the node, boots it for the first time and shows every link.
func (d *demo) grow(ctx context.Context) (err error) {
	for _, at := range []*string{&d.deniedByNode, &d.deniedByCloud} {
		if *at, err = city.FreeAddress(); err != nil {
			return err
		}
	}
	d.node, err = d.city.NewNode(ctx, "node", func(cfg map[string]any) {
		cfg["forwards"] = []map[string]string{
			{"listen": d.deniedByNode, "target": "victim.example:443"},
			{"listen": d.deniedByCloud, "target": "time.city.example:443"},
		}
	})
	if err != nil {
		return err
	}
	if err := d.city.Owner.Assign(ctx, d.node.Device); err != nil {
		return err
	}
	if err := d.node.Run(); err != nil {
		return err
	}
	for _, l := range links {
		rec, err := d.node.Proc.Await(ctx, 0, 30*time.Second, "event", "link.proven", "link", l.name)
		if err != nil {
			return err
		}
		ok("%-19s %s", l.title, rec.Str("detail"))
	}
	return d.showInstances(ctx)
}

// showInstances reads each tenant's records as that tenant, and looks at the
// disk: one encrypted instance for each.
func (d *demo) showInstances(ctx context.Context) error {
	var counts []string
	for _, t := range tenants {
		records, _, err := d.city.Owner.Records(ctx, 0, t.Name, t.Stream)
		if err != nil {
			return err
		}
		if len(records) == 0 {
			return fmt.Errorf("tenant %s has no records", t.Name)
		}
		counts = append(counts, fmt.Sprintf("%s reads %d of its records", t.Name, len(records)))
	}
	files := 0
	err := filepath.WalkDir(filepath.Join(d.cloud().State, "store"), func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		files++
		data, err := os.ReadFile(path)
		if err == nil && (strings.Contains(string(data), `"lux"`) || strings.Contains(string(data), "SQLite format 3")) {
			err = fmt.Errorf("%s holds clear text", path)
		}
		return err
	})
	if err != nil {
		return err
	}
	ok("%-19s %s; %d files, none of which holds clear text", "instances", strings.Join(counts, ", "), files)
	return nil
}
