package fleet_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/fleet"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
)

// seen proves one key in a place and returns its identity.
func seen(t *testing.T) func(node, connector string, at time.Time) *moduleid.Identity {
	t.Helper()
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	cert, err := ca.Issue("camera", key.Public(), nil)
	require.NoError(t, err)
	chip, err := moduleid.FromSigner(key, []*x509.Certificate{cert})
	require.NoError(t, err)
	return func(node, connector string, at time.Time) *moduleid.Identity {
		v := moduleid.Verifier{Schemes: []moduleid.Scheme{moduleid.SignerScheme()}, UnsafeNoRevocations: true,
			Now:        func() time.Time { return at },
			Classes:    map[string]moduleid.Class{"camera": {Members: ca.Pool()}},
			Connectors: map[string]moduleid.Connector{connector: {Classes: []string{"camera"}}}}
		c := moduleid.NewChallenge(node, connector)
		e, err := chip.Prove(t.Context(), c)
		require.NoError(t, err)
		id, err := v.Verify(c, e)
		require.NoError(t, err)
		return id
	}
}

func TestThreat11SameIdentityOnTwoNodes(t *testing.T) {
	at := time.Now()
	module := seen(t)
	w := fleet.Watch{Store: &fleet.Memory{}, Window: 10 * time.Minute}
	observe := func(node, connector string, after time.Duration) error {
		return w.Observe(t.Context(), []*moduleid.Identity{module(node, connector, at.Add(after))})
	}
	require.NoError(t, observe("node-1", "bay1", 0))
	require.NoError(t, observe("node-1", "bay1", time.Minute))
	err := observe("node-2", "bay1", 2*time.Minute)
	require.ErrorIs(t, err, fleet.ErrConflict)
	var c fleet.Conflict
	require.ErrorAs(t, err, &c)
	assert.Equal(t, "node-2", c.Here.Node)
	assert.Equal(t, "node-1", c.Before.Node)
	require.ErrorIs(t, observe("node-1", "bay1", 3*time.Minute), fleet.ErrConflict, "and back again: both are alive")
	require.ErrorIs(t, observe("node-1", "bay2", 4*time.Minute), fleet.ErrConflict)
	require.NoError(t, observe("node-3", "bay1", 15*time.Minute), "moved by a technician")
	require.ErrorIs(t, observe("node-1", "bay1", 14*time.Minute), fleet.ErrConflict, "a report that was late")
}

type broken struct{}

func (broken) Swap(context.Context, string, fleet.Sighting) (fleet.Sighting, bool, error) {
	return fleet.Sighting{}, false, errors.New("database is down")
}

func TestWhatCantBeComparedIsNotUnique(t *testing.T) {
	id := seen(t)("node", "bay", time.Now())
	require.ErrorContains(t, fleet.Watch{Store: broken{}}.Observe(t.Context(), []*moduleid.Identity{id}), "database is down")
	require.Error(t, fleet.Watch{}.Observe(t.Context(), []*moduleid.Identity{id}))
	require.Error(t, fleet.Watch{Store: &fleet.Memory{}}.Observe(t.Context(), []*moduleid.Identity{{}}))
}
