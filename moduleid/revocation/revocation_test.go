package revocation_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/revocation"
)

var update = flag.Bool("update", false, "write golden files")

var issued = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func authority(t testing.TB) (ed25519.PrivateKey, *revocation.Revocations) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	r, err := revocation.New(revocation.Config{Keys: []crypto.PublicKey{pub}})
	require.NoError(t, err)
	return key, r
}

func Example() {
	pub, key, _ := ed25519.GenerateKey(rand.Reader)
	signed, _ := revocation.Sign(revocation.List{Sequence: 1, Issued: time.Now(), IDs: []string{"5d41…"}}, key)

	revocations, _ := revocation.New(revocation.Config{Keys: []crypto.PublicKey{pub}})
	verifier := &moduleid.Verifier{Revocations: revocations}
	fmt.Println(revocations.Update(signed), revocations.Sequence(), verifier.Revocations != nil)
	// Output: <nil> 1 true
}

func TestOnlyNewerListsOfTheAuthorityTakeEffect(t *testing.T) {
	key, r := authority(t)
	sign := func(l revocation.List) []byte {
		s, err := revocation.Sign(l, key)
		require.NoError(t, err)
		return s
	}
	second := sign(revocation.List{Sequence: 2, Issued: issued})
	require.NoError(t, r.Update(second))
	require.NoError(t, r.Update(second), "the same again")
	require.ErrorIs(t, r.Update(sign(revocation.List{Sequence: 1, Issued: issued})), revocation.ErrRollback)
	require.ErrorIs(t, r.Update(sign(revocation.List{Sequence: 2, Issued: issued, IDs: []string{"aa"}})), revocation.ErrRollback, "another list with the same number")
	assert.Equal(t, uint64(2), r.Sequence())
	assert.Equal(t, issued, r.Issued())

	stranger, _ := authority(t)
	forged, err := revocation.Sign(revocation.List{Sequence: 3, Issued: issued}, stranger)
	require.NoError(t, err)
	require.ErrorContains(t, r.Update(forged), "no signature of a known key")
	assert.Equal(t, uint64(2), r.Sequence())
}

func TestListOfAnECDSAKey(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	r, err := revocation.New(revocation.Config{Keys: []crypto.PublicKey{key.Public()}})
	require.NoError(t, err)
	signed, err := revocation.Sign(revocation.List{Sequence: 1, Issued: issued}, key)
	require.NoError(t, err)
	require.NoError(t, r.Update(signed))
}

func TestSaveFailsClosed(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	r, err := revocation.New(revocation.Config{Keys: []crypto.PublicKey{pub}, Save: func([]byte) error { return errors.New("disk full") }})
	require.NoError(t, err)
	signed, err := revocation.Sign(revocation.List{Sequence: 1, Issued: issued}, key)
	require.NoError(t, err)
	require.ErrorContains(t, r.Update(signed), "disk full")
	assert.Zero(t, r.Sequence(), "a list that would be forgotten does not take effect")
	f := r.Check(nil, issued)
	require.Len(t, f, 1)
	assert.Equal(t, moduleid.ReasonStaleList, f[0].Reason)
}

func TestMalformedLists(t *testing.T) {
	key, r := authority(t)
	good, err := revocation.Sign(revocation.List{Sequence: 1, Issued: issued}, key)
	require.NoError(t, err)
	for name, f := range map[string]func(map[string]any){
		"unknown field":   func(m map[string]any) { m["x"] = 1 },
		"no signature":    func(m map[string]any) { m["signatures"] = []any{} },
		"nine signatures": func(m map[string]any) { m["signatures"] = make([]string, 9) },
		"version 2":       func(m map[string]any) { m["version"] = 2 },
		"changed payload": func(m map[string]any) {
			m["payload"] = base64.StdEncoding.EncodeToString([]byte(`{"version":1,"sequence":9}`))
		},
		"empty signatures": func(m map[string]any) { m["signatures"] = []any{""} },
	} {
		t.Run(name, func(t *testing.T) {
			var m map[string]any
			require.NoError(t, json.Unmarshal(good, &m))
			f(m)
			bad, err := json.Marshal(m)
			require.NoError(t, err)
			require.Error(t, r.Update(bad))
		})
	}
	_, err = revocation.Sign(revocation.List{Issued: issued}, key)
	require.Error(t, err)
	_, err = revocation.New(revocation.Config{})
	require.Error(t, err)
	_, err = revocation.New(revocation.Config{Keys: []crypto.PublicKey{"x"}})
	require.Error(t, err)
}

type golden struct {
	Key  []byte          `json:"ed25519"`
	List json.RawMessage `json:"list"`
}

func TestGoldenListVersion1(t *testing.T) {
	const file = "testdata/list-v1.json"
	if *update {
		pub, key, err := ed25519.GenerateKey(rand.Reader)
		require.NoError(t, err)
		list, err := revocation.Sign(revocation.List{Sequence: 7, Issued: issued, IDs: []string{"00ff"}, Serials: []revocation.Serial{{IssuerID: "0a", Serial: "0b"}}}, key)
		require.NoError(t, err)
		data, err := json.MarshalIndent(golden{pub, list}, "", "  ")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file, append(data, '\n'), 0o644))
	}
	g := readGolden(t)
	r, err := revocation.New(revocation.Config{Keys: []crypto.PublicKey{ed25519.PublicKey(g.Key)}})
	require.NoError(t, err)
	require.NoError(t, r.Update(g.List))
	assert.Equal(t, uint64(7), r.Sequence())
}

func readGolden(t testing.TB) (g golden) {
	data, err := os.ReadFile("testdata/list-v1.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &g))
	return g
}

func FuzzUpdate(f *testing.F) {
	g := readGolden(f)
	f.Add([]byte(g.List))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := revocation.New(revocation.Config{Keys: []crypto.PublicKey{ed25519.PublicKey(g.Key)}})
		require.NoError(t, err)
		if r.Update(data) == nil {
			require.Equal(t, uint64(7), r.Sequence())
		}
	})
}
