package tenantstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tenantstore"
)

func TestRecordsAndSeriesSurviveReopening(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	a := w.tenant(s, "acme")
	c := a.Collection("readings")
	for i := range 600 { // more than two pages
		_, err := c.Put(ctx, fmt.Appendf(nil, "k%04d", i), fmt.Appendf(nil, "v%d", i))
		require.NoError(t, err)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	for i := range 10 {
		require.NoError(t, c.Append(ctx, "pm2.5", at.Add(time.Duration(i/2)*time.Second), []byte{byte(i)}))
	}
	require.NoError(t, c.Append(ctx, "pm10", at, []byte("other series")))
	require.NoError(t, c.Append(ctx, "pm2.5", time.Date(1960, 1, 1, 0, 0, 0, 0, time.UTC), []byte("before 1970")))
	require.NoError(t, c.Delete(ctx, []byte("k0001")))
	require.NoError(t, s.Close(ctx))

	s = w.open()
	c = w.handle(s, "acme").Collection("readings")
	r, err := c.Get(ctx, []byte("k0599"))
	require.NoError(t, err)
	assert.Equal(t, "v599", string(r.Value))
	_, err = c.Get(ctx, []byte("k0001"))
	require.ErrorIs(t, err, tenantstore.ErrNotFound)
	var keys []string
	for r, err := range c.Scan(ctx, tenantstore.Range{From: []byte("k0000"), To: []byte("k0598")}) {
		require.NoError(t, err)
		keys = append(keys, string(r.Key))
	}
	require.Len(t, keys, 597)
	assert.IsIncreasing(t, keys)
	keys = nil
	for r, err := range c.Scan(ctx, tenantstore.Range{Prefix: []byte("k05"), Reverse: true, Limit: 3}) {
		require.NoError(t, err)
		keys = append(keys, string(r.Key))
	}
	assert.Equal(t, []string{"k0599", "k0598", "k0597"}, keys)
	var got []byte
	for p, err := range c.Series(ctx, "pm2.5", at, at.Add(4*time.Second)) {
		require.NoError(t, err)
		got = append(got, p.Value...)
	}
	assert.Equal(t, []byte{0, 1, 2, 3, 4, 5, 6, 7}, got)
	n := 0
	for p, err := range c.Series(ctx, "pm2.5", time.Time{}, time.Time{}) {
		require.NoError(t, err)
		if n == 0 {
			assert.Equal(t, 1960, p.Time.Year())
		}
		n++
	}
	assert.Equal(t, 11, n)
}

func TestConditionalPut(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	c := w.tenant(s, "acme").Collection("state")
	k := []byte("k")
	_, err := c.PutIf(ctx, k, []byte("x"), 77)
	require.ErrorIs(t, err, tenantstore.ErrConflict)
	v1, err := c.PutIf(ctx, k, []byte("one"), 0)
	require.NoError(t, err)
	_, err = c.PutIf(ctx, k, []byte("again"), 0)
	require.ErrorIs(t, err, tenantstore.ErrConflict)
	v2, err := c.PutIf(ctx, k, []byte("two"), v1)
	require.NoError(t, err)
	_, err = c.PutIf(ctx, k, []byte("late"), v1)
	require.ErrorIs(t, err, tenantstore.ErrConflict)
	require.NoError(t, c.Delete(ctx, k))
	_, err = c.PutIf(ctx, k, []byte("reborn"), 0)
	require.NoError(t, err)
	_, err = c.PutIf(ctx, k, []byte("a version of the former life"), v2)
	require.ErrorIs(t, err, tenantstore.ErrConflict)
}

func TestTransactionIsAllOrNothing(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	a := w.tenant(s, "acme")
	boom := errors.New("boom")
	err := a.Update(ctx, func(x *tenantstore.Tx) error {
		_, err := x.Put("c", []byte("k"), []byte("v"))
		require.NoError(t, err)
		return boom
	})
	require.ErrorIs(t, err, boom)
	_, err = a.Collection("c").Get(ctx, []byte("k"))
	require.ErrorIs(t, err, tenantstore.ErrNotFound)
	assert.PanicsWithValue(t, "oops", func() {
		_ = a.Update(ctx, func(x *tenantstore.Tx) error {
			_, _ = x.Put("c", []byte("k"), []byte("v"))
			panic("oops")
		})
	})
	_, err = a.Collection("c").Get(ctx, []byte("k"))
	require.ErrorIs(t, err, tenantstore.ErrNotFound)
}

func TestIngestIsExactlyOnce(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	a := w.tenant(s, "acme")
	at := time.Now()
	store := func(x *tenantstore.Tx) error { return x.Append("readings", "co2", at, []byte("412")) }
	fresh, err := a.Ingest(ctx, "node-7/000123", store)
	require.NoError(t, err)
	require.True(t, fresh)
	fresh, err = a.Ingest(ctx, "node-7/000123", store)
	require.NoError(t, err)
	require.False(t, fresh)
	_, err = a.Ingest(ctx, "node-7/000124", func(*tenantstore.Tx) error { return errors.New("not stored") })
	require.Error(t, err)
	fresh, err = a.Ingest(ctx, "node-7/000124", store)
	require.NoError(t, err)
	require.True(t, fresh, "a message whose transaction failed was marked as ingested")
	n := 0
	for _, err := range a.Collection("readings").Series(ctx, "co2", time.Time{}, time.Time{}) {
		require.NoError(t, err)
		n++
	}
	assert.Equal(t, 2, n)
}

func TestLimitsOfNamesKeysAndValues(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	a := w.tenant(s, "acme")
	for _, name := range []string{"", "~catalog", "a/b", "ü", strings.Repeat("x", 129)} {
		_, err := a.Collection(name).Put(ctx, []byte("k"), nil)
		require.ErrorIs(t, err, tenantstore.ErrInvalid, name)
		for _, err := range a.Collection(name).Scan(ctx, tenantstore.Range{}) {
			require.ErrorIs(t, err, tenantstore.ErrInvalid, name)
		}
	}
	c := a.Collection("c")
	_, err := c.Put(ctx, nil, nil)
	require.ErrorIs(t, err, tenantstore.ErrInvalid)
	_, err = c.Put(ctx, make([]byte, 513), nil)
	require.ErrorIs(t, err, tenantstore.ErrInvalid)
	_, err = c.Put(ctx, []byte("k"), make([]byte, 1<<20+1))
	require.ErrorIs(t, err, tenantstore.ErrQuota)
	require.ErrorIs(t, c.Append(ctx, "", time.Now(), nil), tenantstore.ErrInvalid)
	require.ErrorIs(t, c.Append(ctx, "s", time.Time{}, nil), tenantstore.ErrInvalid)
	big := bytes.Repeat([]byte("x"), 1<<20)
	_, err = c.Put(ctx, make([]byte, 512), big)
	require.NoError(t, err)
	r, err := c.Get(ctx, make([]byte, 512))
	require.NoError(t, err)
	assert.True(t, bytes.Equal(big, r.Value))
	_, err = c.Put(ctx, []byte("empty"), nil)
	require.NoError(t, err)
	r, err = c.Get(ctx, []byte("empty"))
	require.NoError(t, err)
	assert.Empty(t, r.Value)
}

func TestSystemInstanceServesRegistries(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	c := s.System().Collection("devices")
	v, err := c.PutIf(ctx, []byte("dev-1"), []byte(`{"state":"pending"}`), 0)
	require.NoError(t, err)
	err = s.System().Update(ctx, func(x *tenantstore.Tx) error {
		r, err := x.Get("devices", []byte("dev-1"))
		if err != nil {
			return err
		}
		_, err = x.PutIf("devices", r.Key, []byte(`{"state":"active"}`), r.Version)
		return err
	})
	require.NoError(t, err)
	_, err = c.PutIf(ctx, []byte("dev-1"), nil, v)
	require.ErrorIs(t, err, tenantstore.ErrConflict)
	_, err = s.System().Collection("~catalog").Get(ctx, []byte("acme"))
	require.ErrorIs(t, err, tenantstore.ErrInvalid)
}
