package main

import (
	"crypto/sha256"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// build adds delegations and publishes every role that they touch.
func (s *sim) build(ds []delegation) {
	roles := []string{}
	for _, d := range ds {
		if s.mds[d.name] == nil {
			roles = append(roles, d.name)
		}
		s.delegate(d)
	}
	s.publish(append(roles, "targets", "snapshot", "timestamp")...)
}

func files(roles []string) []string {
	out := []string{}
	for _, r := range roles {
		out = append(out, "1."+r)
	}
	return out
}

func TestConformanceDelegationGraphs(t *testing.T) {
	d := func(from, name string) delegation { return delegation{from: from, name: name} }
	py := []any{"*.py"}
	for name, tc := range map[string]struct {
		graph []delegation
		order string
	}{
		"basic":                       {[]delegation{d("targets", "A")}, "A"},
		"single level":                {[]delegation{d("targets", "A"), d("targets", "B")}, "A B"},
		"two levels":                  {[]delegation{d("targets", "A"), d("targets", "B"), d("B", "C")}, "A B C"},
		"two levels depth first":      {[]delegation{d("targets", "A"), d("targets", "B"), d("A", "C"), d("A", "D")}, "A C D B"},
		"three levels depth first":    {[]delegation{d("targets", "A"), d("targets", "B"), d("A", "C"), d("C", "D")}, "A C D B"},
		"terminating, two levels":     {[]delegation{d("targets", "A"), d("targets", "B"), {from: "A", name: "C", terminating: true}, d("A", "D")}, "A C"},
		"terminating, three levels":   {[]delegation{d("targets", "A"), d("targets", "B"), {from: "A", name: "C", terminating: true}, d("C", "D")}, "A C D"},
		"terminating first":           {[]delegation{{from: "targets", name: "A", terminating: true}, d("targets", "B")}, "A"},
		"terminating, other path":     {[]delegation{{from: "targets", name: "A", terminating: true, paths: py}, d("targets", "B")}, "B"},
		"paths do not match":          {[]delegation{{from: "targets", name: "A", paths: py}, d("targets", "B"), d("A", "C")}, "B"},
		"paths do not match, below":   {[]delegation{d("targets", "A"), d("targets", "B"), {from: "A", name: "C", paths: py}, d("C", "D")}, "A B"},
		"cycle":                       {[]delegation{d("targets", "A"), d("targets", "B"), d("B", "C"), d("C", "D"), d("D", "B")}, "A B C D"},
		"diamond":                     {[]delegation{d("targets", "A"), d("targets", "B"), d("B", "C"), d("A", "C")}, "A C B"},
		"diamond with other paths":    {[]delegation{d("targets", "A"), d("targets", "B"), d("B", "C"), {from: "A", name: "C", paths: py}}, "A B C"},
		"delegation to the delegator": {[]delegation{d("targets", "A"), d("A", "A")}, "A"},
	} {
		t.Run(name, func(t *testing.T) {
			s, c := start(t)
			s.build(tc.graph)
			require.Equal(t, 1, c.download("missingpath"))
			assert.Equal(t, files(strings.Fields(tc.order)), s.asked[4:])
		})
	}
}

func TestConformanceTargetSearch(t *testing.T) {
	for name, tc := range map[string]struct {
		path  string
		found bool
		order []string
	}{
		"no delegation":            {"targetfile", true, nil},
		"wildcard":                 {"README.md", true, []string{"A"}},
		"separators, x":            {"releases/x/x_v1", true, []string{"B", "C"}},
		"separators, y":            {"releases/y/y_v1.zip", true, []string{"B", "D"}},
		"not delegated all along":  {"releases/z/z_v1.zip", false, []string{"B"}},
		"star does not span slash": {"releases/x/deep/x_v1", false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s, c := start(t)
			s.delegate(delegation{from: "targets", name: "A", paths: []any{"*.doc", "*.md"}})
			s.delegate(delegation{from: "targets", name: "B", paths: []any{"releases/*/*"}})
			s.delegate(delegation{from: "B", name: "C", paths: []any{"releases/x/*"}})
			s.delegate(delegation{from: "B", name: "D", paths: []any{"releases/y/*.zip"}})
			for path, role := range map[string]string{"targetfile": "targets", "README.md": "A", "releases/x/x_v1": "C", "releases/y/y_v1.zip": "D", "releases/z/z_v1.zip": "D"} {
				s.addTarget(role, path, []byte(path))
			}
			s.publish("A", "B", "C", "D", "targets", "snapshot", "timestamp")
			if tc.found {
				require.Zero(t, c.download(tc.path))
				assert.Equal(t, []string{tc.path}, c.artifacts())
			} else {
				require.Equal(t, 1, c.download(tc.path))
			}
			assert.Equal(t, files(tc.order), s.asked[4:])
		})
	}
}

func TestConformancePathHashPrefixes(t *testing.T) {
	s, c := start(t)
	even, odd := []any{}, []any{}
	for i := range 16 {
		if p := fmt.Sprintf("%x", i); i%2 == 0 {
			even = append(even, p)
		} else {
			odd = append(odd, p)
		}
	}
	s.delegate(delegation{from: "targets", name: "even", prefixes: even})
	s.delegate(delegation{from: "targets", name: "odd", prefixes: odd})
	home := func(path string) string {
		if sha256.Sum256([]byte(path))[0]>>4%2 == 0 {
			return "even"
		}
		return "odd"
	}
	names := []string{}
	for i := range 12 {
		names = append(names, fmt.Sprintf("dir/file-%d", i))
		s.addTarget(home(names[i]), names[i], []byte(names[i]))
	}
	s.publish("even", "odd", "targets", "snapshot", "timestamp")
	require.Zero(t, c.download(names...))
	assert.Len(t, c.artifacts(), len(names))
	assert.ElementsMatch(t, []string{"1.even", "1.odd"}, s.asked[4:])
}

func TestConformanceSuccinctRoles(t *testing.T) {
	for path, tc := range map[string]struct {
		bits int
		bin  string
	}{
		"foo": {2, "bin-0"}, "doo": {2, "bin-1"}, "too": {2, "bin-2"}, "bar": {2, "bin-3"}, "bar ": {8, ""},
	} {
		t.Run(path, func(t *testing.T) {
			s, c := start(t)
			k := newKey(t, "", nil)
			s.mds["targets"]["delegations"] = obj{"keys": obj{k.id: k.pub},
				"succinct_roles": obj{"keyids": []any{k.id}, "threshold": 1, "bit_length": tc.bits, "name_prefix": "bin"}}
			if tc.bin == "" {
				tc.bin = fmt.Sprintf("bin-%02x", sha256.Sum256([]byte(path))[0])
			}
			roles := []string{}
			for i := range 1 << tc.bits {
				name := fmt.Sprintf("bin-%0*x", (tc.bits+3)/4, i)
				s.mds[name], s.signers[name] = signedPart("targets", obj{"targets": obj{}}), []*key{k}
				roles = append(roles, name)
			}
			s.addTarget(tc.bin, path, []byte("in a bin"))
			s.publish(append(roles, "targets", "snapshot", "timestamp")...)
			require.Zero(t, c.download(path))
			assert.Equal(t, []string{"1." + tc.bin}, s.asked[4:])
			assert.Equal(t, []string{"in a bin"}, c.artifacts())
			assert.Len(t, c.trusted(), 5)
		})
	}
}

func TestConformanceOddRoleNames(t *testing.T) {
	for _, name := range []string{"?", "#", "/delegatedrole", "../delegatedrole", ".", "..", "a b", "%2f", "ü", strings.Repeat("ü", 90), strings.Repeat("r", 190)} {
		t.Run(name, func(t *testing.T) {
			s, c := start(t)
			s.delegate(delegation{from: "targets", name: name})
			s.addTarget(name, "x", []byte("x"))
			s.publish(name, "targets", "snapshot", "timestamp")
			require.Equal(t, 1, c.download("nonexistent target"))
			assert.Equal(t, "1."+strings.ReplaceAll(url.QueryEscape(name), "+", "%20"), last(s.asked))
			assert.Len(t, c.trusted(), 5)
			require.Zero(t, c.download("x"))
			s.reset()
			require.Zero(t, c.download("x"))
			assert.Equal(t, []string{"2.root", "timestamp"}, s.asked, "the cache is hit for odd names")
		})
	}
}

func TestConformanceRoleNamesOfTopRoles(t *testing.T) {
	for _, name := range []string{"root", "timestamp", "snapshot", "targets"} {
		t.Run(name, func(t *testing.T) {
			s, c := start(t)
			require.Zero(t, c.refresh())
			before := c.trusted()
			k := newKey(t, "", nil)
			s.mds["targets"]["delegations"] = obj{"keys": obj{k.id: k.pub}, "roles": []any{
				obj{"name": name, "keyids": []any{k.id}, "threshold": 1, "terminating": false, "paths": []any{"*"}}}}
			s.publish("targets", "snapshot", "timestamp")
			require.Equal(t, 1, c.download("x"))
			assert.Equal(t, before[0], c.trusted()[0], "root.json is what it was")
		})
	}
}

// A role that is in the cache because one delegator trusts it is verified
// against the one through which it is reached now.
func TestConformanceCachedRoleIsVerifiedAgainstItsDelegator(t *testing.T) {
	s, c := start(t)
	s.delegate(delegation{from: "targets", name: "A", paths: []any{"a/*"}})
	s.delegate(delegation{from: "targets", name: "B", paths: []any{"b/*"}})
	s.delegate(delegation{from: "A", name: "C", paths: []any{"a/*"}})
	s.delegate(delegation{from: "B", name: "C", paths: []any{"b/*"}})
	s.signers["C"] = s.signers["C"][:1] // B's key does not sign
	s.addTarget("C", "a/x", []byte("ax"))
	s.addTarget("C", "b/x", []byte("bx"))
	s.publish("C", "A", "B", "targets", "snapshot", "timestamp")
	require.Zero(t, c.download("a/x"))
	require.Equal(t, 1, c.download("b/x"))
	require.Equal(t, 1, c.download("a/x", "b/x"), "by one client, in order")
	require.Equal(t, 1, c.download("b/x", "a/x"), "in the other order")
	assert.Equal(t, []string{"ax"}, c.artifacts())
}

func TestConformanceRotatedDelegationKey(t *testing.T) {
	s, c := start(t)
	s.delegate(delegation{from: "targets", name: "A"})
	s.addTarget("A", "x", []byte("x"))
	s.publish("A", "targets", "snapshot", "timestamp")
	require.Zero(t, c.download("x"))
	// The delegator replaces A's key; A is not signed by the new one.
	k := newKey(t, "", nil)
	ds := s.mds["targets"]["delegations"].(obj)
	ds["keys"] = obj{k.id: k.pub}
	ds["roles"].([]any)[0].(obj)["keyids"] = []any{k.id}
	s.publish("targets", "snapshot", "timestamp")
	require.Equal(t, 1, c.download("x"))
	s.signers["A"] = []*key{k}
	s.publish("A", "snapshot", "timestamp")
	require.Zero(t, c.download("x"))
}
