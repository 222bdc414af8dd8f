package main

import (
	"crypto"
	"os"
	"path/filepath"
	"time"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/secureboot"
)

// references reads the appraisal policies in force: every file of the
// directory reference/, each signed by the owner's policy key.
func (c *cloud) references() ([]*secureboot.Policy, error) {
	key, err := loadPublic(c.file("policy.pub"))
	if err != nil {
		return nil, err
	}
	dir := c.file("reference")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []*secureboot.Policy
	for _, e := range entries {
		signed, err := wire.ReadCapped(filepath.Join(dir, e.Name()), maxReference)
		var p *secureboot.Policy
		if err == nil {
			p, err = secureboot.VerifyPolicy(signed, []crypto.PublicKey{key}, 0, time.Now())
		}
		if err != nil { // an old release's policy that ran out must not shut the others' nodes out
			c.log.Warn("reference values not used", "event", "reference.refused", "file", e.Name(), "reason", err.Error())
			continue
		}
		all = append(all, p)
	}
	return all, nil
}

// referenceAge is how long the policies that were read are used before the
// directory is read again.
const referenceAge = time.Second

// currentReferences is references, read once a second at most.
func (c *cloud) currentReferences() ([]*secureboot.Policy, error) {
	c.refMu.Lock()
	defer c.refMu.Unlock()
	if c.refAt.IsZero() || time.Since(c.refAt) > referenceAge {
		c.refs, c.refErr = c.references()
		c.refAt = time.Now()
	}
	return c.refs, c.refErr
}

// maxReference bounds one signed appraisal policy, in bytes.
const maxReference = 12 << 20
