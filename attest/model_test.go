package attest_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/internal/softnode"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/attest/registry"
)

// TestModel runs random histories of one device against a model of what must
// be possible: enrolments, appraisals good and bad, answers kept for later,
// revocation, release, time passing, and a second verifier over the same
// stores.
func TestModel(t *testing.T) {
	maker := softnode.NewMaker()
	n := softnode.NewNode(maker)
	rapid.Check(t, func(rt *rapid.T) {
		c, _ := softCloud(t, func(r *attest.RegistrarConfig, _ *attest.VerifierConfig) {
			r.Endorsers.Anchors[0] = maker.Root
		})
		state := registry.State("") // of the model
		bound := false              // has an entry whose attestation key is n.AK
		var deadline time.Time
		type answer struct {
			s       attest.Session
			e       *attest.Evidence
			expires time.Time
			used    bool
		}
		var kept []*answer
		good := true
		c.opinion = func(attest.Input) attest.Opinion {
			if good {
				return attest.Opinion{Status: attest.StatusAffirming}
			}
			return attest.Opinion{Status: attest.StatusWarning}
		}
		admitted := func() bool {
			return state == registry.Enrolled || state == registry.Affirming || state == registry.Failing
		}
		appraise := func(a *answer) {
			r, err := c.verifier.Appraise(t.Context(), a.s, a.e)
			ok := admitted() && !a.used && c.now.Before(a.expires) && good
			if ok {
				require.NoError(rt, err)
				require.Equal(rt, n.Device, r.Device())
				state, deadline = registry.Affirming, r.Expires()
			} else {
				require.Nil(rt, r)
				switch {
				case a.used:
					require.ErrorIs(rt, err, reason.NoChallenge)
				case !c.now.Before(a.expires):
					require.True(rt, errors.Is(err, attest.ErrExpired) || errors.Is(err, reason.NoChallenge), "%v", err)
				case !admitted():
					require.ErrorIs(rt, err, attest.ErrRevoked)
				default:
					require.ErrorIs(rt, err, attest.ErrNotAffirming)
				}
				if !good && admitted() && !a.used && c.now.Before(a.expires) {
					state = registry.Failing
				}
			}
			a.used = true
		}
		rt.Repeat(map[string]func(*rapid.T){
			"enroll": func(*rapid.T) {
				_, err := softEnroll(c, n)
				if state == registry.Revoked {
					require.ErrorIs(rt, err, attest.ErrRevoked)
					return
				}
				require.NoError(rt, err)
				if !bound || state == registry.Released {
					state, bound = registry.Enrolled, true
				}
			},
			"challenge": func(*rapid.T) {
				ch, err := c.verifier.Challenge(t.Context(), n.Session(nil))
				if !admitted() {
					if bound {
						require.ErrorIs(rt, err, reason.Revoked)
					} else {
						require.ErrorIs(rt, err, registry.ErrNotFound)
					}
					return
				}
				require.NoError(rt, err)
				s := n.Session(ch.Nonce)
				kept = append(kept, &answer{s: s, e: n.Evidence(t.Context(), s, ch), expires: ch.Expires})
			},
			"appraise": func(rt *rapid.T) {
				if len(kept) > 0 {
					appraise(rapid.SampledFrom(kept).Draw(rt, "answer"))
				}
			},
			"turn bad or good": func(*rapid.T) { good = !good },
			"revoke": func(*rapid.T) {
				err := c.registrar.Revoke(t.Context(), n.Device, "model")
				if !bound {
					require.ErrorIs(rt, err, registry.ErrNotFound)
					return
				}
				require.NoError(rt, err)
				state = registry.Revoked
			},
			"release": func(*rapid.T) {
				err := c.registrar.Release(t.Context(), n.Device)
				if state != registry.Revoked {
					if bound {
						require.ErrorIs(rt, err, reason.NotRevoked)
					} else {
						require.ErrorIs(rt, err, registry.ErrNotFound)
					}
					return
				}
				require.NoError(rt, err)
				state = registry.Released
			},
			"time": func(rt *rapid.T) {
				c.now = c.now.Add(time.Duration(rapid.SampledFrom([]int{1, 60, 120, 121, 600, 601}).Draw(rt, "seconds")) * time.Second)
			},
			"sweep": func(*rapid.T) {
				missed, err := c.verifier.Sweep(t.Context())
				require.NoError(rt, err)
				if state == registry.Affirming && c.now.After(deadline) {
					require.Len(rt, missed, 1)
					state = registry.Failing
				} else {
					require.Empty(rt, missed)
				}
			},
			"": func(*rapid.T) {
				d, err := c.devices.Get(t.Context(), n.Device)
				if !bound {
					require.ErrorIs(rt, err, registry.ErrNotFound)
					return
				}
				require.NoError(rt, err)
				require.Equal(rt, state, d.State)
			},
		})
	})
}
