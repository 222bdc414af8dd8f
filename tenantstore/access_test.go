package tenantstore_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tenantstore"
)

func TestCrossTenantAndAbsentAreRefusedIdentically(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	w.tenant(s, "acme")
	w.tenant(s, "beta")
	w.grant(s, tenantstore.Grant{Subject: "node-7", Stream: "camera", Tenant: "acme", Roles: []tenantstore.Role{tenantstore.RoleIngest}},
		tenantstore.Grant{Subject: "node-7", Stream: "ghost", Tenant: "no-such", Roles: []tenantstore.Role{tenantstore.RoleIngest}})

	_, foreign := s.Authenticate(ctx, w.cert("node-7"), "beta")
	_, absent := s.Authenticate(ctx, w.cert("node-7"), "nowhere")
	require.ErrorIs(t, foreign, tenantstore.ErrDenied)
	require.Equal(t, foreign.Error(), absent.Error())

	_, ghost := s.Tenant(ctx, w.principal(s, "node-7", "ghost"))
	require.ErrorIs(t, ghost, tenantstore.ErrDenied)
	_, operator := s.Tenant(ctx, w.operator(s))
	require.ErrorIs(t, operator, tenantstore.ErrDenied, "an operator reads no tenant's data")
	require.Equal(t, ghost.Error(), operator.Error())

	p := w.principal(s, "service-acme", "")
	_, exists := s.Destroy(ctx, p, "beta")
	_, missing := s.Destroy(ctx, p, "gamma")
	require.ErrorIs(t, exists, tenantstore.ErrDenied)
	require.Equal(t, errors.Unwrap(exists).Error(), errors.Unwrap(missing).Error())
	assert.Contains(t, w.log.String(), `"outcome":"denied"`)
}

func TestZeroAndForeignPrincipalsAreDenied(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	w.tenant(s, "acme")
	_, err := s.Tenant(ctx, tenantstore.Principal{})
	require.ErrorIs(t, err, tenantstore.ErrDenied)
	_, err = s.Create(ctx, tenantstore.Principal{}, tenantstore.Spec{ID: "x"})
	require.ErrorIs(t, err, tenantstore.ErrDenied)

	other := newWorld(t)
	so := other.open()
	other.tenant(so, "acme")
	_, err = s.Tenant(ctx, other.principal(so, "service-acme", ""))
	require.ErrorIs(t, err, tenantstore.ErrDenied, "a principal of another store")
}

func TestAuthenticateRefuses(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	revoked := errors.New("revoked")
	var admit error
	w.edit = func(c *tenantstore.Config) {
		c.Admit = func(context.Context, *x509.Certificate) error { return admit }
	}
	s := w.open()
	_, err := s.Authenticate(ctx, w.cert("operator"), "")
	require.ErrorIs(t, err, tenantstore.ErrDenied, "no assignments yet")
	w.operator(s)

	stranger, strangerKey := issue(t, nil, nil, "another root", "")
	forged, _ := issue(t, stranger, strangerKey, "operator", "")
	twoNames, _ := issue(t, w.ca, w.caKey, "", "")
	for name, chain := range map[string][]*x509.Certificate{
		"no certificate":              nil,
		"nil certificate":             {nil},
		"another issuer":              {forged, stranger},
		"a subject that names nobody": {twoNames},
		"the issuer itself":           {w.ca},
		"an unknown subject":          w.cert("nobody"),
	} {
		_, err := s.Authenticate(ctx, chain, "")
		require.ErrorIs(t, err, tenantstore.ErrDenied, name)
	}
	admit = revoked
	_, err = s.Authenticate(ctx, w.cert("operator"), "")
	require.ErrorIs(t, err, tenantstore.ErrDenied, "revoked")
	require.NotErrorIs(t, err, revoked, "the reason goes to the log, not to the peer")
	assert.Contains(t, w.log.String(), "revoked")
	admit = nil
	w.clock = func() time.Time { return time.Now().Add(25 * time.Hour) }
	_, err = s.Authenticate(ctx, w.cert("operator"), "")
	require.ErrorIs(t, err, tenantstore.ErrDenied, "expired certificate")
}

func TestSpiffeNameWinsOverCommonName(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	w.operator(s)
	c, _ := issue(t, w.ca, w.caKey, "operator", "spiffe://city.example/node/7")
	_, err := s.Authenticate(ctx, []*x509.Certificate{c}, "")
	require.ErrorIs(t, err, tenantstore.ErrDenied)
}

func TestIngestRoleAddsAndNothingElse(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	svc := w.tenant(s, "acme").Collection("c")
	_, err := svc.Put(ctx, []byte("config"), []byte("theirs"))
	require.NoError(t, err)
	w.grant(s, tenantstore.Grant{Subject: "node-7", Stream: "air", Tenant: "acme", Roles: []tenantstore.Role{tenantstore.RoleIngest}})
	n, err := s.Tenant(ctx, w.principal(s, "node-7", "air"))
	require.NoError(t, err)
	c := n.Collection("c")
	require.NoError(t, c.Append(ctx, "co2", time.Now(), []byte("1")))
	_, err = c.PutIf(ctx, []byte("new"), []byte("mine"), 0)
	require.NoError(t, err)
	_, err = c.PutIf(ctx, []byte("config"), []byte("overwritten"), 0)
	require.ErrorIs(t, err, tenantstore.ErrConflict)

	_, err = c.Put(ctx, []byte("config"), []byte("overwritten"))
	require.ErrorIs(t, err, tenantstore.ErrDenied)
	require.ErrorIs(t, c.Delete(ctx, []byte("config")), tenantstore.ErrDenied)
	_, err = c.Get(ctx, []byte("config"))
	require.ErrorIs(t, err, tenantstore.ErrDenied)
	require.ErrorIs(t, n.Update(ctx, func(x *tenantstore.Tx) error {
		_, err := x.Get("c", []byte("config"))
		return err
	}), tenantstore.ErrDenied)
	for _, err := range c.Scan(ctx, tenantstore.Range{}) {
		require.ErrorIs(t, err, tenantstore.ErrDenied)
	}
	for _, err := range c.Series(ctx, "co2", time.Time{}, time.Time{}) {
		require.ErrorIs(t, err, tenantstore.ErrDenied)
	}
	require.ErrorIs(t, n.ExportAudit(ctx, w.log), tenantstore.ErrDenied)
}

func TestTakenBackGrantStopsHandlesInUse(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	c := w.tenant(s, "acme").Collection("c")
	_, err := c.Put(ctx, []byte("k"), nil)
	require.NoError(t, err)
	w.grants = w.grants[:1]
	w.assign(s)
	_, err = c.Get(ctx, []byte("k"))
	require.ErrorIs(t, err, tenantstore.ErrDenied)
}

func TestHandleEndsWithItsCertificate(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	c := w.tenant(s, "acme").Collection("c")
	w.clock = func() time.Time { return time.Now().Add(25 * time.Hour) }
	_, err := c.Put(ctx, []byte("k"), nil)
	require.ErrorIs(t, err, tenantstore.ErrDenied)
}

func TestAssignmentsRefused(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	w.operator(s)
	good := tenantstore.Assignments{Store: "trusttree", Serial: 50, Expires: time.Now().Add(time.Hour), Grants: w.grants}
	_, stranger, _ := ed25519.GenerateKey(nil)
	sign := func(a tenantstore.Assignments, k crypto.Signer) []byte {
		b, err := tenantstore.SignAssignments(a, k)
		require.NoError(t, err)
		return b
	}
	require.NoError(t, s.Assign(ctx, sign(good, w.owner)))
	require.NoError(t, s.Assign(ctx, sign(good, w.owner)), "the same document again")

	bad := good
	bad.Serial = 60
	require.ErrorIs(t, s.Assign(ctx, sign(bad, stranger)), tenantstore.ErrDenied, "signed by a stranger")
	bad.Store = "another"
	require.ErrorIs(t, s.Assign(ctx, sign(bad, w.owner)), tenantstore.ErrDenied, "for another store")
	bad = good
	bad.Serial = 49
	require.ErrorIs(t, s.Assign(ctx, sign(bad, w.owner)), tenantstore.ErrDenied, "rolled back")
	bad = good
	bad.Grants = nil
	require.ErrorIs(t, s.Assign(ctx, sign(bad, w.owner)), tenantstore.ErrDenied, "two documents of one serial")
	require.ErrorIs(t, s.Assign(ctx, []byte(`{"payloadType":"x"}`)), tenantstore.ErrDenied)
	require.ErrorIs(t, s.Assign(ctx, append(sign(good, w.owner), "{}"...)), tenantstore.ErrDenied)

	for name, g := range map[string]tenantstore.Grant{
		"operator with a tenant": {Subject: "x", Tenant: "acme", Roles: []tenantstore.Role{tenantstore.RoleControl}},
		"reader without tenant":  {Subject: "x", Roles: []tenantstore.Role{tenantstore.RoleRead}},
		"unknown role":           {Subject: "x", Tenant: "acme", Roles: []tenantstore.Role{"root"}},
		"no role":                {Subject: "x", Tenant: "acme"},
		"path as a tenant":       {Subject: "x", Tenant: "../acme", Roles: []tenantstore.Role{tenantstore.RoleRead}},
		"nobody":                 {Tenant: "acme", Roles: []tenantstore.Role{tenantstore.RoleRead}},
		"granted twice":          {Subject: "operator", Roles: []tenantstore.Role{tenantstore.RoleControl}},
	} {
		a := good
		a.Grants = append([]tenantstore.Grant{g}, w.grants...)
		_, err := tenantstore.SignAssignments(a, w.owner)
		require.Error(t, err, name)
	}
	require.NoError(t, s.Close(ctx))
	s = w.open()
	bad = good
	bad.Serial = 49
	require.ErrorIs(t, s.Assign(ctx, sign(bad, w.owner)), tenantstore.ErrDenied, "rolled back after a restart")
	_, err := s.Authenticate(ctx, w.cert("operator"), "")
	require.NoError(t, err)
}

func TestECDSAOwner(t *testing.T) {
	w := newWorld(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	w.edit = func(c *tenantstore.Config) { c.Owners = []crypto.PublicKey{key.Public()} }
	s := w.open()
	b, err := tenantstore.SignAssignments(tenantstore.Assignments{Store: "trusttree", Serial: 1, Expires: time.Now().Add(time.Hour)}, key)
	require.NoError(t, err)
	require.NoError(t, s.Assign(t.Context(), b))
	require.ErrorIs(t, s.Assign(t.Context(), w.signed()), tenantstore.ErrDenied)
}

func TestExpiredAssignmentsDenyEverybody(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	b, err := tenantstore.SignAssignments(tenantstore.Assignments{Store: "trusttree", Serial: 1, Expires: time.Now().Add(-time.Second),
		Grants: []tenantstore.Grant{{Subject: "operator", Roles: []tenantstore.Role{tenantstore.RoleControl}}}}, w.owner)
	require.NoError(t, err)
	require.NoError(t, s.Assign(ctx, b))
	_, err = s.Authenticate(ctx, w.cert("operator"), "")
	require.ErrorIs(t, err, tenantstore.ErrDenied)
}
