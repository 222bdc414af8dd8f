package revocation_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
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
	signed, _ := revocation.Sign(revocation.List{Sequence: 1, Issued: time.Now(), IDs: []string{strings.Repeat("5d", 32)}}, key)

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
	require.ErrorIs(t, r.Update(sign(revocation.List{Sequence: 2, Issued: issued, IDs: []string{strings.Repeat("aa", 32)}})), revocation.ErrRollback, "another list with the same number")
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

// An entry that can't match anything revokes nothing: it is refused by who signs,
// and by who reads it.
func TestEntriesThatMatchNothing(t *testing.T) {
	key, r := authority(t)
	id := strings.Repeat("0a", 32)
	for name, l := range map[string]revocation.List{
		"cut ID":            {IDs: []string{id[:62]}},
		"fingerprint":       {IDs: []string{"0a:0a"}},
		"empty ID":          {IDs: []string{""}},
		"prefixed ID":       {IDs: []string{"0x" + id[2:]}},
		"issuer by name":    {Serials: []revocation.Serial{{IssuerID: "CN=maker", Serial: "1"}}},
		"serial in words":   {Serials: []revocation.Serial{{IssuerID: id, Serial: "one"}}},
		"empty serial":      {Serials: []revocation.Serial{{IssuerID: id}}},
		"decimal with dots": {Serials: []revocation.Serial{{IssuerID: id, Serial: "1.234"}}},
	} {
		l.Sequence, l.Issued, l.Version = 1, issued, 1
		_, err := revocation.Sign(l, key)
		require.Error(t, err, name)
		if name == "cut ID" {
			continue // lists of earlier writers may have some
		}
		payload, err := json.Marshal(l)
		require.NoError(t, err)
		h := sha256.Sum256(append(binary.BigEndian.AppendUint32([]byte("moduleid.v1\x00revocations"), uint32(len(payload))), payload...))
		signed, err := json.Marshal(map[string]any{"version": 1, "payload": payload, "signatures": [][]byte{ed25519.Sign(key, h[:])}})
		require.NoError(t, err)
		require.ErrorContains(t, r.Update(signed), "revocation: list", name)
		assert.Zero(t, r.Sequence(), name)
	}
	signed, err := revocation.Sign(revocation.List{Sequence: 1, Issued: issued, IDs: []string{strings.ToUpper(id)}, Serials: []revocation.Serial{{IssuerID: id, Serial: "0x00:AB"}}}, key)
	require.NoError(t, err)
	require.NoError(t, r.Update(signed))
}

// While a list is being saved, modules are checked against the one before.
func TestSavingHoldsUpNoCheck(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	saving, saved := make(chan struct{}), make(chan struct{})
	r, err := revocation.New(revocation.Config{Keys: []crypto.PublicKey{pub}, Save: func([]byte) error { close(saving); <-saved; return nil }})
	require.NoError(t, err)
	signed, err := revocation.Sign(revocation.List{Sequence: 1, Issued: issued}, key)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- r.Update(signed) }()
	<-saving
	checked := make(chan []moduleid.Finding, 1)
	go func() { checked <- r.Check(nil, issued) }()
	select {
	case f := <-checked:
		require.Len(t, f, 1)
		assert.Equal(t, moduleid.ReasonStaleList, f[0].Reason)
	case <-time.After(time.Minute):
		require.Fail(t, "a check waits for the disk")
	}
	close(saved)
	require.NoError(t, <-done)
	assert.Empty(t, r.Check(nil, issued))
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
		list, err := revocation.Sign(revocation.List{Sequence: 7, Issued: issued, IDs: []string{strings.Repeat("00ff", 16)}, Serials: []revocation.Serial{{IssuerID: strings.Repeat("0a", 32), Serial: "0b"}}}, key)
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
