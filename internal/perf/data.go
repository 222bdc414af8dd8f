package perf

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Data is what was measured of one part.
type Data struct {
	Config  map[string]string          // machine, date, commit and others
	Figures map[string]map[int]float64 // by "name unit", then round
	Missing map[string]string          // benchmarks that were skipped, or failed, and why
	rounds  map[int]bool
}

const maxData = 4 << 20 // bytes of one data file

var processors = regexp.MustCompile(`-[0-9]+$`)

// Parse reads the format of Go benchmarks: lines "key: value", among them
// "round: N", and results. What it does not know it leaves out.
func Parse(r io.Reader) (*Data, error) {
	d := &Data{Config: map[string]string{}, Figures: map[string]map[int]float64{}, Missing: map[string]string{}, rounds: map[int]bool{}}
	s := bufio.NewScanner(io.LimitReader(r, maxData))
	s.Buffer(nil, 1<<20)
	round := 0
	for s.Scan() {
		line := s.Text()
		key, value, ok := strings.Cut(line, ": ")
		switch {
		case strings.HasPrefix(line, "Benchmark"):
			if err := d.result(round, line); err != nil {
				return nil, err
			}
		case !ok || strings.ContainsAny(key, " \t"):
		case key == "round":
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 {
				return nil, fmt.Errorf("perf: %q is no round", line)
			}
			round = n
		case key == "missing":
			name, why, _ := strings.Cut(value, ": ")
			d.Missing[name] = why
		default:
			d.Config[key] = value
		}
	}
	return d, s.Err()
}

// result takes "BenchmarkName-2  10  123 ns/op  4 allocs/op".
func (d *Data) result(round int, line string) error {
	f := strings.Fields(line)
	if len(f) < 4 || len(f)%2 != 0 {
		return nil // a name alone
	}
	if _, err := strconv.Atoi(f[1]); err != nil {
		return nil
	}
	if round == 0 {
		return fmt.Errorf("perf: %s comes before the first round", f[0])
	}
	name := processors.ReplaceAllString(strings.TrimPrefix(f[0], "Benchmark"), "")
	for i := 2; i < len(f); i += 2 {
		v, err := strconv.ParseFloat(f[i], 64)
		if err != nil {
			return fmt.Errorf("perf: %s: %q is no number", f[0], f[i])
		}
		key := name + " " + f[i+1]
		if d.Figures[key] == nil {
			d.Figures[key] = map[int]float64{}
		}
		d.Figures[key][round] = v
	}
	d.rounds[round] = true
	return nil
}

// Rounds is how many rounds have results.
func (d *Data) Rounds() int { return len(d.rounds) }

// all returns a figure's values, sorted.
func (d *Data) all(key string) []float64 { return slices.Sorted(maps.Values(d.Figures[key])) }

// quotients divides, within each round that has all of them, a figure by the
// best of others.
func (d *Data) quotients(figure string, over []string) []float64 {
	var out []float64
	for round, v := range d.Figures[figure] {
		var others []float64
		for _, o := range over {
			if w, ok := d.Figures[o][round]; ok {
				others = append(others, w)
			}
		}
		if len(others) == 0 {
			continue
		}
		best := slices.Min(others)
		if MoreIsBetter(figure) {
			best = slices.Max(others)
		}
		if best != 0 {
			out = append(out, v/best)
		}
	}
	slices.Sort(out)
	return out
}

// times is how many times as good ours is as a peer, in each round.
func (d *Data) times(ours, peer string) []float64 {
	if MoreIsBetter(ours) {
		return d.quotients(ours, []string{peer})
	}
	return d.quotients(peer, []string{ours})
}

// MoreIsBetter tells by the unit which way a figure is good.
func MoreIsBetter(figure string) bool {
	_, unit, _ := strings.Cut(figure, " ")
	return strings.HasSuffix(unit, "/s") || unit == "share" || unit == "cpu-share" || unit == "times"
}

// missing says why a figure is not there.
func (d *Data) missing(figure string) string {
	name, _, _ := strings.Cut(figure, " ")
	for n := name; n != ""; n = n[:max(0, strings.LastIndexByte(n, '/'))] {
		if why, ok := d.Missing[n]; ok {
			return why
		}
	}
	return ""
}
