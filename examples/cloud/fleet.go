package main

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"
)

// nodeStates are the states that a node can be in, the worst first.
var nodeStates = []string{"revoked", "contraindicated", "unreachable", "warning", "failing", "released", "enrolled", "affirming"}

// nodeView is what the operator sees of one node: its tree of trust, link by
// link, with the evidence behind each.
type nodeView struct {
	Version int        `json:"version"` // 1
	ID      string     `json:"id"`
	Name    string     `json:"name"`
	State   string     `json:"state"` // one of nodeStates
	Since   time.Time  `json:"since"`
	Reason  []string   `json:"reasons,omitempty"`
	Links   []linkView `json:"links"`
	// Software is the release that runs, Update what the node's installer does.
	Software string `json:"software,omitempty"`
	Update   string `json:"update,omitempty"`
	Instance string `json:"instance,omitempty"` // whose tunnel carried the last news
}

// linkView is one link of the tree.
type linkView struct {
	Name   string    `json:"name"`
	OK     bool      `json:"ok"`
	Detail string    `json:"detail"`
	At     time.Time `json:"at"`
}

// linkOrder is the order in which trust grows; tenants come after it.
var linkOrder = []string{"identity", "boot", "modules", "tunnel", "data volume", "software"}

func linkRank(name string) int {
	if i := slices.Index(linkOrder, name); i >= 0 {
		return i
	}
	return len(linkOrder)
}

// maxReasons and maxReason bound what is kept of why a node was refused:
// evidence of 32 MiB can hold many reasons.
const (
	maxReasons = 32
	maxReason  = 512 // bytes
)

// fleet is the operator's picture of the fleet. It is derived from events and
// holds no authority: decisions read the registry. It is safe for concurrent
// use.
type fleet struct {
	instance string
	now      func() time.Time

	mu      sync.Mutex
	nodes   map[string]*nodeView
	dirty   map[string]bool // changed since the last flush
	changes chan struct{}   // closed at the next change
}

func newFleet(instance string, now func() time.Time) *fleet {
	return &fleet{instance: instance, now: now, nodes: map[string]*nodeView{}, dirty: map[string]bool{}, changes: make(chan struct{})}
}

// update changes one node's view under the lock.
func (f *fleet) update(id string, change func(*nodeView)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[id]
	if n == nil {
		n = &nodeView{Version: 1, ID: id, State: "enrolled", Since: f.now()}
		f.nodes[id] = n
	}
	change(n)
	n.Instance = f.instance
	f.dirty[id] = true
	f.notify()
}

// touched wakes who waits for a change.
func (f *fleet) touched() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.notify()
}

func (f *fleet) notify() {
	close(f.changes)
	f.changes = make(chan struct{})
}

// changed returns a channel that is closed at the next change.
func (f *fleet) changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changes
}

// setState records a node's state and the reasons for it.
func (f *fleet) setState(id, name, state string, reasons ...string) {
	f.update(id, func(n *nodeView) {
		if name != "" {
			n.Name = name
		}
		if n.State != state {
			n.State, n.Since = state, f.now()
		}
		n.Reason = nil
		for _, r := range reasons[:min(len(reasons), maxReasons)] {
			if r != "" {
				n.Reason = append(n.Reason, clip(r, maxReason))
			}
		}
	})
}

// setLink records one link of a node's tree of trust.
func (f *fleet) setLink(id, link string, ok bool, detail string) {
	f.update(id, func(n *nodeView) {
		v := linkView{Name: link, OK: ok, Detail: clip(detail, 4*maxReason), At: f.now()}
		i := slices.IndexFunc(n.Links, func(l linkView) bool { return l.Name == link })
		if i >= 0 {
			n.Links[i] = v
			return
		}
		n.Links = append(n.Links, v)
		slices.SortStableFunc(n.Links, func(a, b linkView) int {
			return cmp.Or(linkRank(a.Name)-linkRank(b.Name), strings.Compare(a.Name, b.Name))
		})
	})
}

// take puts views from the store into the picture: at the start, and what other
// instances saw. Own news that are not flushed yet stay.
func (f *fleet) take(views []nodeView) {
	if len(views) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, v := range views {
		if !f.dirty[v.ID] {
			f.nodes[v.ID] = &v
		}
	}
	f.notify()
}

// flush returns what changed since the last flush.
func (f *fleet) flush() []nodeView {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]nodeView, 0, len(f.dirty))
	for id := range f.dirty {
		out = append(out, f.nodes[id].clone())
	}
	clear(f.dirty)
	return out
}

// undo marks views as changed again, after a flush that failed.
func (f *fleet) undo(views []nodeView) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, v := range views {
		f.dirty[v.ID] = true
	}
}

func (n *nodeView) clone() nodeView {
	c := *n
	c.Reason, c.Links = slices.Clone(n.Reason), slices.Clone(n.Links)
	return c
}

// node returns a copy of one node's view.
func (f *fleet) node(id string) (nodeView, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, ok := f.nodes[id]
	if !ok {
		return nodeView{}, false
	}
	return n.clone(), true
}

// counts returns how many nodes are in each state.
func (f *fleet) counts() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]int{}
	for _, n := range f.nodes {
		out[n.State]++
	}
	return out
}

// software returns how many nodes run each release, and in which phase of an
// update they are.
func (f *fleet) software() []softwareView {
	f.mu.Lock()
	defer f.mu.Unlock()
	count := map[softwareView]int{}
	for _, n := range f.nodes {
		count[softwareView{Version: n.Software, Phase: n.Update}]++
	}
	out := make([]softwareView, 0, len(count))
	for v, n := range count {
		v.Nodes = n
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b softwareView) int {
		return cmp.Or(strings.Compare(b.Version, a.Version), strings.Compare(a.Phase, b.Phase))
	})
	return out
}

// softwareView is a line of the table of rollouts.
type softwareView struct {
	Version string `json:"version"`
	Phase   string `json:"phase"`
	Nodes   int    `json:"nodes"`
}

// maxView bounds one answer of view.
const maxView = 1000

// view returns at most maxView nodes, the worst state first, then by name. A
// filter selects by state, and by a part of name or ID.
func (f *fleet) view(state, part string) []nodeView {
	f.mu.Lock()
	defer f.mu.Unlock()
	var found []*nodeView
	for _, n := range f.nodes {
		if (state == "" || n.State == state) && (part == "" || strings.Contains(n.ID, part) || strings.Contains(n.Name, part)) {
			found = append(found, n)
		}
	}
	slices.SortFunc(found, func(a, b *nodeView) int {
		return cmp.Or(slices.Index(nodeStates, a.State)-slices.Index(nodeStates, b.State), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	out := make([]nodeView, 0, min(len(found), maxView))
	for _, n := range found[:min(len(found), maxView)] {
		out = append(out, n.clone())
	}
	return out
}
