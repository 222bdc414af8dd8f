package perf

import (
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"
	"strings"
)

// DataDir is where the data files are, below the repository.
const DataDir = "docs/performance"

// Page is the page's file, below the repository.
const Page = "docs/performance.md"

// Load reads the data of the parts; what was never measured is empty.
func Load(repo fs.FS, parts []Part) (map[string]*Data, error) {
	out := map[string]*Data{}
	for _, p := range parts {
		f, err := repo.Open(DataDir + "/" + p.Name + ".txt")
		if err != nil {
			out[p.Name], err = Parse(strings.NewReader(""))
			if err != nil {
				return nil, err
			}
			continue
		}
		out[p.Name], err = Parse(f)
		_ = f.Close()
		if err != nil {
			return nil, fmt.Errorf("%w (%s)", err, p.Name)
		}
	}
	return out, nil
}

// Render writes the page.
func Render(parts []Part, data map[string]*Data) string {
	w := new(strings.Builder)
	w.WriteString(head)
	machines(w, parts, data)
	missed(w, parts, data)
	w.WriteString("\n## Ratios\n" + ratiosHead)
	for _, p := range parts {
		d := data[p.Name]
		fmt.Fprintf(w, "\n### %s\n%s\n", p.Title, p.About)
		if d.Rounds() == 0 {
			w.WriteString("\nNot measured yet.\n")
			continue
		}
		ratios(w, p, d)
		bars(w, p, d)
	}
	w.WriteString("\n## Absolute figures\n" + absoluteHead)
	for _, p := range parts {
		absolute(w, p, data[p.Name])
	}
	return w.String()
}

const head = `# Performance

<!-- written by: ci/generate.sh performance; do not edit: a test compares this page with its data -->

What the packages cost beside others who do the same, measured in the same run
on the same machine. One command measures everything anew and writes this page:

    ci/generate.sh performance            # all of it
    ci/generate.sh performance volumes    # one part
    ci/generate.sh performance -rounds 2  # a quick look

It runs ` + "`go test -bench`" + ` of the packages in rounds, ours and the peers in turn, and
leaves out a peer whose program is missing, which the tables then say. The data
behind every figure are in [performance](performance), in the format of Go
benchmarks, so that ` + "`benchstat`" + ` reads them too. ` + "`internal/perf`" + ` declares what
is compared with whom, and computes what stands here.
`

const ratiosHead = `
How many times as good as the peer ours is: above 1 ours is faster, or takes
less. It is the median of the ratios within each round, and in brackets where
the true median is with 95 % confidence; with fewer than six rounds, the least
and the most. A ~ marks a ratio whose brackets hold 1: no difference is shown.
Bars are what the project asks of itself; most were set before the code was
there, and a missed one is said to be.
`

const absoluteHead = `
Medians on the machine above, ours and the peers', and how far the 95 % interval
reaches from it (with fewer than six rounds, the range).
`

// machines writes what was measured on, and when.
func machines(w *strings.Builder, parts []Part, data map[string]*Data) {
	w.WriteString("\n## Measured on\n")
	described := map[string][]string{} // machine to parts
	var order []string
	for _, p := range parts {
		c := data[p.Name].Config
		if len(c) == 0 {
			continue
		}
		m := fmt.Sprintf("%s, %s cores, %s of memory, %s; disk: %s; %s/%s, %s", c["cpu"], c["cores"], c["memory"], c["kernel"], c["disk"], c["goos"], c["goarch"], c["go"])
		if described[m] == nil {
			order = append(order, m)
		}
		described[m] = append(described[m], p.Title)
	}
	if len(order) == 0 {
		w.WriteString("Nothing has been measured yet.\n")
	}
	for _, m := range order {
		if len(order) == 1 {
			fmt.Fprintf(w, "%s.\n", m)
		} else {
			fmt.Fprintf(w, "- %s: %s\n", strings.Join(described[m], ", "), m)
		}
	}
	w.WriteString("\n| part | measured | commit | rounds | load before, of 1 min | peers' versions |\n|---|---|---|---|---|---|\n")
	for _, p := range parts {
		d := data[p.Name]
		c := d.Config
		if d.Rounds() == 0 {
			fmt.Fprintf(w, "| %s | not yet | | | | |\n", p.Title)
			continue
		}
		fmt.Fprintf(w, "| %s | %s | %s | %d | %s | %s |\n", p.Title, c["date"], c["commit"], d.Rounds(), c["load"], c["peers"])
	}
}

// missed lists every bar that is not met, before anything else.
func missed(w *strings.Builder, parts []Part, data map[string]*Data) {
	var lines []string
	met, unknown := 0, 0
	for _, p := range parts {
		for _, b := range p.Bars {
			got, ok, is := b.measure(data[p.Name])
			switch {
			case !ok:
				unknown++
			case is:
				met++
			default:
				lines = append(lines, fmt.Sprintf("- %s: %s: **%s**, bar %s", p.Title, b.What, b.show(median(got)), b.target()))
			}
		}
	}
	fmt.Fprintf(w, "\n## Bars\n%d bars are met, %d missed, %d not measured.", met, len(lines), unknown)
	if len(lines) > 0 {
		w.WriteString(" Missed:\n\n" + strings.Join(lines, "\n"))
	}
	w.WriteString("\n")
}

func ratios(w *strings.Builder, p Part, d *Data) {
	if len(p.Rows) == 0 {
		return
	}
	w.WriteString("\n| what | beside | ours is | |\n|---|---|---|---|\n")
	absent := map[string]bool{}
	for _, r := range p.Rows {
		what := r.What
		for _, peer := range r.Peers {
			v := d.times(r.Ours, peer.Figure)
			switch {
			case len(v) == 0 && p.Absent[peer.Name] != "":
				absent[peer.Name] = true
				continue
			case len(v) == 1:
				fmt.Fprintf(w, "| %s | %s | **%s×** | one round |\n", what, peer.Name, figure(v[0]))
			case len(v) > 0:
				low, high, _ := interval(v)
				sign := ""
				if len(v) > 1 && low <= 1 && high >= 1 {
					sign = " ~"
				}
				fmt.Fprintf(w, "| %s | %s | **%s×**%s | [%s–%s] |\n", what, peer.Name, figure(median(v)), sign, figure(low), figure(high))
			default:
				fmt.Fprintf(w, "| %s | %s | not measured | %s |\n", what, peer.Name, d.why(peer.Figure, r.Ours))
			}
			what = ""
		}
	}
	for _, name := range slices.Sorted(maps.Keys(absent)) {
		fmt.Fprintf(w, "\nBeside %s: not measured; %s.\n", name, p.Absent[name])
	}
}

// why says why one of these figures is not there.
func (d *Data) why(figures ...string) string {
	for _, f := range figures {
		if len(d.Figures[f]) == 0 {
			if why := d.missing(f); why != "" {
				return why
			}
		}
	}
	return "the run had no such benchmark"
}

func bars(w *strings.Builder, p Part, d *Data) {
	if len(p.Bars) == 0 {
		return
	}
	w.WriteString("\n| bar | target | measured | |\n|---|---|---|---|\n")
	for _, b := range p.Bars {
		got, ok, is := b.measure(d)
		switch {
		case !ok:
			fmt.Fprintf(w, "| %s | %s | not measured | %s |\n", b.What, b.target(), d.why(append([]string{b.Figure}, b.Over...)...))
		case is:
			fmt.Fprintf(w, "| %s | %s | %s | met |\n", b.What, b.target(), b.show(median(got)))
		default:
			fmt.Fprintf(w, "| %s | %s | %s | **missed** |\n", b.What, b.target(), b.show(median(got)))
		}
	}
}

// measure returns a bar's figure in each round, sorted, and whether its median
// meets the target.
func (b Bar) measure(d *Data) (got []float64, ok, met bool) {
	var v []float64
	if len(b.Over) > 0 {
		v = d.quotients(b.Figure, b.Over)
	} else {
		v = d.all(b.Figure)
	}
	for _, x := range v {
		if b.Per != 0 {
			x = b.Per / x
		}
		if b.Scale != 0 {
			x *= b.Scale
		}
		got = append(got, x)
	}
	slices.Sort(got)
	m := median(got)
	if b.AtMost {
		return got, len(got) > 0, m <= b.Target
	}
	return got, len(got) > 0, m >= b.Target
}

func (b Bar) show(v float64) string {
	s := figure(v)
	switch b.Unit {
	case "":
		return s
	case "×":
		return s + "×"
	}
	return s + " " + b.Unit
}

func (b Bar) target() string {
	if b.AtMost {
		return "≤ " + b.show(b.Target)
	}
	return "≥ " + b.show(b.Target)
}

func absolute(w *strings.Builder, p Part, d *Data) {
	if len(d.Figures) == 0 {
		return
	}
	fmt.Fprintf(w, "\n### %s, absolute\n| benchmark | unit | median | ± | rounds |\n|---|---|---|---|---|\n", p.Title)
	for _, key := range slices.Sorted(maps.Keys(d.Figures)) {
		name, unit, _ := strings.Cut(key, " ")
		if unit == "bar" {
			continue
		}
		v := d.all(key)
		m := median(v)
		low, high, _ := interval(v)
		spread := "0 %"
		if len(v) == 1 {
			spread = "one round"
		} else if m != 0 {
			spread = fmt.Sprintf("%.0f %%", 100*math.Max(high-m, m-low)/m)
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %d |\n", name, unit, quantity(m, unit), spread, len(v))
	}
}

// quantity shows a figure of a unit in the multiple that reads best.
func quantity(v float64, unit string) string {
	scale := func(v float64, step float64, names ...string) string {
		i := 0
		for v >= step && i < len(names)-1 {
			v, i = v/step, i+1
		}
		return figure(v) + " " + names[i]
	}
	switch {
	case strings.HasSuffix(unit, "ns/op"), strings.HasSuffix(unit, "-ns"):
		return scale(v, 1000, "ns", "µs", "ms", "s")
	case unit == "B/op":
		return scale(v, 1024, "B", "KiB", "MiB", "GiB")
	}
	return figure(v)
}

// figure shows three digits that count, with commas from thousands on.
func figure(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return "?"
	case a >= 99.95:
		s := fmt.Sprintf("%.0f", v)
		for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
			s = s[:i] + "," + s[i:]
		}
		return s
	case a >= 9.995:
		return trim(fmt.Sprintf("%.1f", v))
	case a >= 0.0995 || a == 0:
		return trim(fmt.Sprintf("%.2f", v))
	}
	return fmt.Sprintf("%.3g", v)
}

// trim takes ".0" and ".00" away.
func trim(s string) string {
	if whole, rest, ok := strings.Cut(s, "."); ok && strings.Trim(rest, "0") == "" {
		return whole
	}
	return s
}
