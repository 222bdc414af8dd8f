package main

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/trusttree/trusttree/tenantstore"
)

//go:embed web
var web embed.FS

// page is the operator page: the fleet, one tree of trust for each node, the
// tenants, the rollouts and the last events. It reads only, loads nothing from
// anywhere else, and its content security policy says so.
type page struct {
	domain   string
	fleet    *fleet
	monitor  *monitor
	usage    *usage
	tenants  func(context.Context, tenantstore.Principal) ([]tenantstore.Info, error)
	releases func(context.Context) ([]releaseView, error)
	log      *slog.Logger
}

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"ago":   ago,
	"short": func(id string) string { return id[:min(len(id), 16)] },
	"why": func(n nodeView) string {
		if len(n.Reason) > 1 {
			return fmt.Sprintf("%s (and %d more)", n.Reason[0], len(n.Reason)-1)
		}
		return strings.Join(n.Reason, "")
	},
}).ParseFS(web, "web/page.html"))

func ago(t time.Time) string {
	d := time.Since(t)
	if d < time.Minute {
		return max(d, 0).Round(time.Second).String()
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}

const contentSecurity = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

type navItem struct{ Path, Name string }

var nav = []navItem{{"/", "Fleet"}, {"/tenants", "Tenants"}, {"/rollouts", "Rollouts"}, {"/events", "Events"}}

func (p *page) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", p.showFleet)
	mux.HandleFunc("GET /nodes/{id}", p.showNode)
	mux.HandleFunc("GET /tenants", p.showTenants)
	mux.HandleFunc("GET /rollouts", p.showRollouts)
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		p.render(w, r, "events", map[string]any{"Events": p.monitor.last()})
	})
	mux.Handle("GET /live", limited(maxLive, http.HandlerFunc(p.live)))
	mux.HandleFunc("GET /fleet.json", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(p.fleet.view(r.URL.Query().Get("state"), r.URL.Query().Get("q")))
	})
	files, err := fs.Sub(web, "web")
	if err != nil {
		panic(err) // the directory is compiled in
	}
	static := http.FileServerFS(files)
	mux.Handle("GET /style.css", static)
	mux.Handle("GET /live.js", static)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", contentSecurity)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		mux.ServeHTTP(w, r)
	})
}

// render fills a template; nothing is sent of one that fails.
func (p *page) render(w http.ResponseWriter, r *http.Request, name string, data map[string]any) {
	data["Domain"], data["Nav"], data["At"] = p.domain, nav, r.URL.Path
	data["Title"] = p.domain + ": " + name
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, name, data); err != nil {
		p.fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(b.Bytes())
}

func (p *page) fail(w http.ResponseWriter, err error) {
	p.log.Warn("operator page", "event", "page.failed", "error", err.Error())
	http.Error(w, "the page can't be shown; the cloud's log says why", http.StatusInternalServerError)
}

func (p *page) showFleet(w http.ResponseWriter, r *http.Request) {
	type count struct {
		State string
		Nodes int
	}
	state, part := r.URL.Query().Get("state"), r.URL.Query().Get("q")
	nodes := p.fleet.view(state, part)
	var counts []count
	total := 0
	byState := p.fleet.counts()
	for _, s := range nodeStates {
		total += byState[s]
		if byState[s] > 0 {
			counts = append(counts, count{s, byState[s]})
		}
	}
	matching := total
	if state != "" {
		matching = byState[state]
	}
	if part != "" {
		matching = len(nodes)
	}
	p.render(w, r, "fleet", map[string]any{"Nodes": nodes, "Counts": counts, "Total": total, "Matching": matching, "Filtered": state+part != ""})
}

func (p *page) showNode(w http.ResponseWriter, r *http.Request) {
	n, ok := p.fleet.node(r.PathValue("id"))
	if !ok {
		http.Error(w, "no such node", http.StatusNotFound)
		return
	}
	p.render(w, r, "node", map[string]any{"Node": n, "Tree": treeOf(n)})
}

// branch is a link of the drawn tree with what grows from it.
type branch struct {
	linkView
	Class string // ok, bad, none
	Grows []branch
}

// treeOf draws the tree of trust: each link grows from the one that it was
// checked by. What was not heard of yet is drawn as such.
func treeOf(n nodeView) []branch {
	made := func(name, absent string) branch {
		for _, l := range n.Links {
			if l.Name == name {
				class := "bad"
				if l.OK {
					class = "ok"
				}
				return branch{linkView: l, Class: class}
			}
		}
		return branch{linkView: linkView{Name: name, Detail: absent}, Class: "none"}
	}
	data, software := made("data volume", "no share was asked for"), made("software", "no report yet")
	tunnel := made("tunnel", "not up yet")
	for _, l := range n.Links {
		if linkRank(l.Name) == len(linkOrder) {
			tunnel.Grows = append(tunnel.Grows, made(l.Name, ""))
		}
	}
	tunnel.Grows = append(tunnel.Grows, data, software)
	modules := made("modules", "not judged yet")
	modules.Grows = []branch{tunnel}
	boot := made("boot", "not judged yet")
	boot.Grows = []branch{modules}
	identity := made("identity", "not enrolled by this cloud")
	identity.Name, identity.Grows = "TPM and identity", []branch{boot}
	return []branch{identity}
}

// operatorKey is the context's key of the operator who asks.
type operatorKey struct{}

func (p *page) showTenants(w http.ResponseWriter, r *http.Request) {
	type row struct {
		tenantstore.Info
		tenantUsage
	}
	var rows []row
	if who, ok := r.Context().Value(operatorKey{}).(tenantstore.Principal); ok {
		all, err := p.tenants(r.Context(), who)
		if err != nil {
			p.fail(w, err)
			return
		}
		for _, t := range all {
			rows = append(rows, row{t, p.usage.of(t.ID)})
		}
	} else { // the loopback page knows of tenants what passed through here
		for id, u := range p.usage.all() {
			rows = append(rows, row{tenantstore.Info{ID: id, State: "active"}, u})
		}
	}
	slices.SortFunc(rows, func(a, b row) int { return strings.Compare(string(a.ID), string(b.ID)) })
	p.render(w, r, "tenants", map[string]any{"Tenants": rows})
}

func (p *page) showRollouts(w http.ResponseWriter, r *http.Request) {
	data := map[string]any{"Software": p.fleet.software()}
	releases, err := p.releases(r.Context())
	if err != nil {
		p.log.Warn("rollouts", "event", "rollouts.unreadable", "error", err.Error())
		data["Problem"] = "The repository can't be read: " + err.Error()
	}
	running := map[string]int{}
	for _, s := range p.fleet.software() {
		running[s.Version] += s.Nodes
	}
	for i := range releases {
		releases[i].Nodes = running[releases[i].Version]
	}
	data["Releases"] = releases
	p.render(w, r, "rollouts", data)
}

// maxLive bounds how many pages are kept live at once.
const maxLive = 64

// liveEvery is how often a page is told to look again at most.
const liveEvery = 300 * time.Millisecond

// live tells a page by server-sent events when something changed.
func (p *page) live(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	_ = out.SetReadDeadline(time.Time{}) // it stays open for as long as the page is
	send := func(text string) bool {
		_ = out.SetWriteDeadline(time.Now().Add(10 * time.Second))
		_, err := fmt.Fprint(w, text)
		return err == nil && out.Flush() == nil
	}
	keep := time.NewTicker(15 * time.Second)
	defer keep.Stop()
	changed := p.fleet.changed()
	for ok := send("retry: 1000\n\n"); ok; {
		select {
		case <-r.Context().Done():
			return
		case <-keep.C:
			ok = send(": still here\n\n")
		case <-changed:
			changed = p.fleet.changed() // before the page looks, so that nothing is missed
			ok = send("event: changed\ndata: {}\n\n")
			select {
			case <-r.Context().Done():
				return
			case <-time.After(liveEvery):
			}
		}
	}
}
