package main

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// nodeView is what the operator sees of one node: its tree of trust, link by
// link, with the evidence behind each.
type nodeView struct {
	ID     string     `json:"id"`
	Name   string     `json:"name"`
	State  string     `json:"state"` // enrolled, affirming, warning, contraindicated, revoked, unreachable
	Since  time.Time  `json:"since"`
	Reason []string   `json:"reasons,omitempty"`
	Links  []linkView `json:"links"`
}

// linkView is one link of the tree.
type linkView struct {
	Name   string    `json:"name"`
	OK     bool      `json:"ok"`
	Detail string    `json:"detail"`
	At     time.Time `json:"at"`
}

// fleet is this instance's picture of the fleet for the operator page. It is
// derived from events and holds no authority: decisions read the registry.
// It is safe for concurrent use.
type fleet struct {
	mu    sync.Mutex
	nodes map[string]*nodeView
	now   func() time.Time
}

func newFleet(now func() time.Time) *fleet {
	return &fleet{nodes: map[string]*nodeView{}, now: now}
}

func (f *fleet) node(id string) *nodeView {
	n := f.nodes[id]
	if n == nil {
		n = &nodeView{ID: id, Since: f.now()}
		f.nodes[id] = n
	}
	return n
}

// setState records a node's state and the reasons for it.
func (f *fleet) setState(id, name, state string, reasons ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.node(id)
	if name != "" {
		n.Name = name
	}
	if n.State != state {
		n.State, n.Since = state, f.now()
	}
	n.Reason = reasons
}

// setLink records one link of a node's tree of trust.
func (f *fleet) setLink(id, link string, ok bool, detail string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.node(id)
	v := linkView{Name: link, OK: ok, Detail: detail, At: f.now()}
	for i := range n.Links {
		if n.Links[i].Name == link {
			n.Links[i] = v
			return
		}
	}
	n.Links = append(n.Links, v)
}

// view returns a copy, ordered by name.
func (f *fleet) view() []nodeView {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]nodeView, 0, len(f.nodes))
	for _, n := range f.nodes {
		c := *n
		c.Reason, c.Links = slices.Clone(n.Reason), slices.Clone(n.Links)
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b nodeView) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return out
}
