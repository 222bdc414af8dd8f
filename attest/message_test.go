package attest_test

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/ekimport"
	"github.com/trusttree/trusttree/attest/internal/softnode"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/registry"
)

// The vectors were computed by another program from the formula in doc.go.
func TestBindingVectors(t *testing.T) {
	var file struct {
		Vectors []struct {
			Name, Purpose, Device, Nonce, Binding string
			LeafSPKI                              string `json:"leaf_spki"`
			Bodies                                []struct {
				MediaType string `json:"media_type"`
				Data      string
			}
			BodiesHash     string `json:"bodies_hash"`
			QualifyingData string `json:"qualifying_data"`
		}
	}
	b, err := os.ReadFile("testdata/binding.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(b, &file))
	require.Len(t, file.Vectors, 4)
	for _, v := range file.Vectors {
		raw := func(s string) []byte {
			b, err := hex.DecodeString(s)
			require.NoError(t, err)
			return b
		}
		s := attest.Session{Purpose: v.Purpose, Device: registry.DeviceID(raw(v.Device)), LeafSPKI: [32]byte(raw(v.LeafSPKI))}
		var bodies []attest.Body
		for _, body := range v.Bodies {
			bodies = append(bodies, attest.Body{MediaType: body.MediaType, Data: raw(body.Data)})
		}
		digest, qualifying := attest.Binding(s, raw(v.Nonce), raw(v.Binding), bodies)
		assert.Equal(t, v.BodiesHash, hex.EncodeToString(digest[:]), v.Name)
		assert.Equal(t, v.QualifyingData, hex.EncodeToString(qualifying), v.Name)
	}
}

var updateGolden = flag.Bool("update", false, "write the golden files anew")

func golden[M attest.Message](t *testing.T, name string, m M) {
	t.Helper()
	b, err := attest.Marshal(&m)
	require.NoError(t, err)
	file := "testdata/" + name + ".v1.json"
	if *updateGolden {
		require.NoError(t, os.WriteFile(file, append(b, '\n'), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, string(bytes.TrimSpace(want)), string(b), "the wire format changed: that needs a new version")
	back, err := attest.Parse[M](want)
	require.NoError(t, err)
	again, err := attest.Marshal(back)
	require.NoError(t, err)
	assert.Equal(t, string(b), string(again))
}

func samples() (attest.EnrollmentRequest, attest.ActivationChallenge, attest.ActivationResponse, attest.Enrollment, attest.Challenge, attest.Evidence) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	id := registry.DeviceID{1, 2, 3}
	nonce := bytes.Repeat([]byte{7}, 32)
	return attest.EnrollmentRequest{EKCertificates: [][]byte{{1}, {2}}, AKPublic: []byte{3}, Token: []byte("t")},
		attest.ActivationChallenge{ID: "ab-01", Device: id, Nonce: nonce, Credential: []byte{1}, Secret: []byte{2}, Expires: at},
		attest.ActivationResponse{ID: "ab-01", Secret: []byte{1}, KeyPublic: []byte{2}, Certify: []byte{3}, Signature: []byte{4}, CSR: []byte{5}},
		attest.Enrollment{Device: id, Chain: [][]byte{{1}}, Expires: at},
		attest.Challenge{ID: "ab-01", Device: id, Purpose: attest.PurposeAttest, Nonce: nonce, PCRs: []quote.Selection{{Bank: crypto.SHA256, PCRs: []int{0, 13}}}, Expires: at},
		attest.Evidence{Challenge: "ab-01", Quote: []byte{1}, Signature: []byte{2}, PCRValues: []byte{3}, Bodies: []attest.Body{{MediaType: "a/b", Data: []byte{4}}}}
}

func TestGoldenMessages(t *testing.T) {
	a, b, c, d, e, f := samples()
	golden(t, "enrollment-request", a)
	golden(t, "activation-challenge", b)
	golden(t, "activation-response", c)
	golden(t, "enrollment", d)
	golden(t, "challenge", e)
	golden(t, "evidence", f)
	golden(t, "import-challenge", ekimport.Challenge{
		ID: b.ID, Device: b.Device, Nonce: b.Nonce, Public: []byte{1}, Duplicate: []byte{2}, Seed: []byte{3}, Expires: b.Expires,
	})
	golden(t, "import-response", ekimport.Response{
		ID: b.ID, AKPublic: []byte{1}, AKCertify: []byte{2}, AKSignature: []byte{3}, KeyPublic: []byte{4}, Certify: []byte{5}, Signature: []byte{6}, CSR: []byte{7},
	})
}

// Whatever takes a message takes none for an answer.
func TestNoMessage(t *testing.T) {
	n, key, c, _ := enrolled(t)
	ctx, s := t.Context(), session(t, n, key)
	_, err := c.registrar.Begin(ctx, nil)
	require.ErrorIs(t, err, attest.ErrMalformed)
	_, err = c.registrar.Complete(ctx, nil)
	require.ErrorIs(t, err, attest.ErrMalformed)
	_, err = c.registrar.CompleteImport(ctx, nil)
	require.ErrorIs(t, err, attest.ErrMalformed)
	_, err = c.verifier.Appraise(ctx, s, nil)
	require.ErrorIs(t, err, attest.ErrMalformed)
	_, err = n.Activate(ctx, nil, key)
	require.ErrorIs(t, err, attest.ErrMalformed)
	_, err = n.Import(ctx, nil, key)
	require.ErrorIs(t, err, attest.ErrMalformed)
	_, err = n.Evidence(ctx, s, nil)
	require.ErrorIs(t, err, attest.ErrMalformed)
	require.ErrorIs(t, n.StoreCertificate(ctx, nil, c.roots()), attest.ErrMalformed)
}

func TestMessagesAreStrict(t *testing.T) {
	_, _, _, _, ch, ev := samples()
	good, err := attest.Marshal(&ch)
	require.NoError(t, err)
	text := string(good)
	for name, bad := range map[string]string{
		"empty":                "",
		"not an object":        `[]`,
		"null":                 `null`,
		"unknown field":        strings.Replace(text, `{"version"`, `{"admin":true,"version"`, 1),
		"another version":      strings.Replace(text, `"version":1`, `"version":2`, 1),
		"no version":           strings.Replace(text, `"version":1,`, ``, 1),
		"repeated field":       strings.Replace(text, `"purpose":"attest"`, `"purpose":"attest","purpose":"other"`, 1),
		"field in capitals":    strings.Replace(text, `"purpose"`, `"Purpose"`, 1),
		"folded field":         strings.Replace(text, `"purpose":"attest"`, `"purpose":"attest","purpo`+"\u017f"+`e":"x"`, 1),
		"trailing data":        text + `{}`,
		"cut short":            text[:len(text)-1],
		"short nonce":          strings.Replace(text, `"nonce":"B`, `"nonce":"AAAA","x":"`, 1),
		"unknown field inside": strings.Replace(text, `"bank"`, `"x":1,"bank"`, 1),
		"SHA-1 bank":           strings.Replace(text, `sha256`, `sha1`, 1),
		"no PCRs":              strings.Replace(text, `[0,13]`, `[]`, 1),
		"PCR twice":            strings.Replace(text, `[0,13]`, `[0,0]`, 1),
		"resettable PCR":       strings.Replace(text, `[0,13]`, `[0,16]`, 1),
		"PCR out of range":     strings.Replace(text, `[0,13]`, `[0,24]`, 1),
		"bad purpose":          strings.Replace(text, `"attest"`, `"at\u0000"`, 1),
		"nested too deep":      strings.Replace(text, `[0,13]`, strings.Repeat("[", 20)+strings.Repeat("]", 20), 1),
	} {
		_, err := attest.Parse[attest.Challenge]([]byte(bad))
		require.ErrorIs(t, err, attest.ErrMalformed, name)
	}
	ev.Bodies = []attest.Body{{MediaType: "b/b"}, {MediaType: "a/a"}}
	_, err = attest.Marshal(&ev)
	require.ErrorIs(t, err, attest.ErrMalformed, "bodies out of order")
	ev.Bodies = []attest.Body{{MediaType: "a/a"}, {MediaType: "a/a"}}
	_, err = attest.Marshal(&ev)
	require.ErrorIs(t, err, attest.ErrMalformed, "body twice")
	ev.Bodies = []attest.Body{{MediaType: "a/a", Data: make([]byte, 11<<20)}}
	big, err := attest.Marshal(&ev)
	require.NoError(t, err)
	_, err = attest.Parse[attest.Evidence](big)
	require.NoError(t, err, "the largest evidence that can be made can be read")
	ev.Bodies[0].Data = append(ev.Bodies[0].Data, 0)
	_, err = attest.Marshal(&ev)
	require.ErrorIs(t, err, attest.ErrMalformed, "bodies too large")
	_, err = attest.Parse[attest.Challenge](make([]byte, attest.MaxMessage+1))
	require.ErrorIs(t, err, attest.ErrMalformed)
	_, err = attest.Parse[attest.Evidence](make([]byte, attest.MaxEvidence+1))
	require.ErrorIs(t, err, attest.ErrMalformed)
}

func fuzz[M attest.Message](f *testing.F, file string) {
	b, err := os.ReadFile("testdata/" + file + ".v1.json")
	require.NoError(f, err)
	f.Add(b)
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := attest.Parse[M](data)
		if err != nil {
			require.ErrorIs(t, err, attest.ErrMalformed)
			return
		}
		_, err = attest.Marshal(m)
		require.NoError(t, err)
	})
}

func FuzzEvidence(f *testing.F) {
	b, err := os.ReadFile("testdata/evidence.v1.json")
	require.NoError(f, err)
	f.Add(b)
	k := softnode.NewKey(softnode.P256(), softnode.AKAttributes)
	ak, err := quote.ParseKey(k.Public)
	require.NoError(f, err)
	f.Add([]byte(`{"version":1,"keys":[{"public":"AQ==","certify":"AQ==","signature":"AQ=="}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := attest.Parse[attest.Evidence](data)
		if err == nil {
			_, err = attest.Marshal(m)
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, attest.ErrMalformed)
		}
		keys, err := attest.VerifyKeys(ak, attest.Session{}, nil, []attest.Body{{MediaType: attest.KeysType, Data: data}})
		require.Error(t, err)
		require.Nil(t, keys)
	})
}

func FuzzChallenge(f *testing.F)          { fuzz[attest.Challenge](f, "challenge") }
func FuzzActivationResponse(f *testing.F) { fuzz[attest.ActivationResponse](f, "activation-response") }
func FuzzActivationChallenge(f *testing.F) {
	fuzz[attest.ActivationChallenge](f, "activation-challenge")
}
func FuzzImport(f *testing.F) {
	for _, name := range []string{"import-challenge", "import-response"} {
		b, err := os.ReadFile("testdata/" + name + ".v1.json")
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if m, err := attest.Parse[ekimport.Challenge](data); err == nil {
			_ = ekimport.Check(m.Public)
		} else {
			require.ErrorIs(t, err, attest.ErrMalformed)
		}
		if _, err := attest.Parse[ekimport.Response](data); err != nil {
			require.ErrorIs(t, err, attest.ErrMalformed)
		}
	})
}

func FuzzEnrollmentRequest(f *testing.F) { fuzz[attest.EnrollmentRequest](f, "enrollment-request") }
