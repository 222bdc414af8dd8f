package moduleid_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
)

// world is what is really plugged in; a session must never outlive it.
type world struct {
	plugged map[string]int // connector: index of the module, absent is -1
	broken  bool           // the chips give no answer
}

// place is a chip that answers as whatever is in the connector now.
type place struct {
	w         *world
	connector string
	modules   []moduleid.Chip
}

func (p place) Prove(ctx context.Context, c moduleid.Challenge) (*moduleid.Evidence, error) {
	if p.w.broken {
		return nil, errors.New("bus error")
	}
	i := p.w.plugged[p.connector]
	if i < 0 {
		return nil, moduleid.ErrAbsent
	}
	return p.modules[i].Prove(ctx, c)
}

func (place) Close() error { return nil }

func TestBayModel(t *testing.T) {
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	stranger, err := moduleidtest.NewCA("Stranger")
	require.NoError(t, err)
	var modules []moduleid.Chip // 0 to 2 are the owner's, 3 is foreign
	var ids []string
	for i := range 4 {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		issuer := ca
		if i == 3 {
			issuer = stranger
		}
		cert, err := issuer.Issue("module", key.Public(), nil)
		require.NoError(t, err)
		m, err := moduleid.FromSigner(key, []*x509.Certificate{cert})
		require.NoError(t, err)
		modules, ids = append(modules, m), append(ids, moduleid.ID(cert))
	}
	connectors := []string{"a", "b"}
	rapid.Check(t, func(t *rapid.T) {
		w := &world{plugged: map[string]int{"a": -1, "b": -1}}
		now := time.Now()
		pcrs := newPCRs()
		v := &moduleid.Verifier{Schemes: []moduleid.Scheme{moduleid.SignerScheme()}, UnsafeNoRevocations: true,
			Classes:    map[string]moduleid.Class{"camera": {Members: ca.Pool()}},
			Connectors: map[string]moduleid.Connector{"a": {Classes: []string{"camera"}}, "b": {Classes: []string{"camera"}}}}
		var bays []moduleid.BayConfig
		for _, c := range connectors {
			bays = append(bays, moduleid.BayConfig{Connector: c, Lease: time.Minute, Open: func(context.Context) (moduleid.Chip, error) {
				return place{w, c, modules}, nil
			}})
		}
		inv, err := moduleid.NewInventory(moduleid.InventoryConfig{Node: node, Verifier: v, Bays: bays, PCRs: pcrs, Now: func() time.Time { return now }})
		require.NoError(t, err)
		// admitted is the model: which module each connector's session is of,
		// and until when it is good.
		type admission struct {
			s     *moduleid.Session
			id    string
			until time.Time
		}
		admitted := map[string]*admission{}
		connector := func(t *rapid.T) string { return rapid.SampledFrom(connectors).Draw(t, "connector") }
		t.Repeat(map[string]func(*rapid.T){
			"plug, seen": func(t *rapid.T) {
				c := connector(t)
				w.plugged[c] = rapid.IntRange(-1, 3).Draw(t, "module")
				require.NoError(t, inv.Bay(c).Removed(t.Context()))
				delete(admitted, c)
			},
			"swap, unseen": func(t *rapid.T) { w.plugged[connector(t)] = rapid.IntRange(-1, 3).Draw(t, "module") },
			"break":        func(*rapid.T) { w.broken = !w.broken },
			"time":         func(t *rapid.T) { now = now.Add(time.Duration(rapid.IntRange(1, 70).Draw(t, "seconds")) * time.Second) },
			"admit": func(t *rapid.T) {
				c := connector(t)
				i := w.plugged[c]
				s, err := inv.Bay(c).Admit(t.Context())
				if err != nil {
					delete(admitted, c)
					var refused *moduleid.RefusedError
					if errors.As(err, &refused) && refused.Reason() == moduleid.ReasonDuplicate {
						clear(admitted) // the other one went with it
					}
					return
				}
				require.False(t, w.broken)
				require.Contains(t, []int{0, 1, 2}, i, "only the owner's modules")
				if old := admitted[c]; old != nil && old.id == ids[i] {
					old.until = now.Add(time.Minute)
				}
				admitted[c] = &admission{s, ids[i], now.Add(time.Minute)}
			},
			"collect": func(t *rapid.T) {
				nonce := make([]byte, 32)
				_, body, err := inv.Collect(t.Context(), nonce)
				require.NoError(t, err)
				verdict, err := v.VerifyReport(moduleid.ReportInput{Body: body, Node: node, Nonce: nonce, Bank: crypto.SHA256, PCRs: map[int][]byte{13: pcrs.values[crypto.SHA256][13]}})
				require.NoError(t, err, "an honest node's report holds")
				for _, id := range verdict.Admitted() {
					require.Equal(t, ids[w.plugged[id.Connector()]], id.ID())
				}
				for _, c := range connectors {
					e := inv.Bay(c).Entry()
					if a := admitted[c]; a != nil && e.ID == a.id {
						a.until = now.Add(time.Minute)
					} else {
						delete(admitted, c)
					}
				}
			},
			"": func(t *rapid.T) {
				seen := map[string]bool{}
				for _, c := range connectors {
					e := inv.Bay(c).Entry()
					require.False(t, e.Admitted() && seen[e.ID], "one identity in two places")
					seen[e.ID] = true
					a := admitted[c]
					if a == nil {
						continue
					}
					id, err := a.s.Identity()
					if now.Before(a.until) {
						require.NoError(t, err)
						require.Equal(t, a.id, id.ID())
					} else {
						require.ErrorIs(t, err, moduleid.ErrUnproven)
					}
				}
			},
		})
	})
}
