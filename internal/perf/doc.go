// Package perf makes docs/performance.md: what is measured beside whom is
// declared in it (Parts), measured by internal/perf/measure, kept as data in
// the format of Go benchmarks below docs/performance, and rendered from that
// data alone, so that the page can be checked without measuring.
package perf

// Part is one subject of the page.
type Part struct {
	Name  string // of its data file
	Title string
	About string // what the rows do, and on what
	Runs  []Run
	Rows  []Row
	Bars  []Bar
	// Absent are peers that could not be measured by anybody who has what this
	// project installs, each with the reason.
	Absent map[string]string
}

// Run is one start of a package's benchmark binary in each round.
type Run struct {
	Dir    string   // package, below the repository; a nested module's too
	Bench  []string // functions, without "Benchmark"
	Time   string   // -test.benchtime
	Rounds int      // at most so many; 0 means as many as asked for
	Short  bool     // without TRUSTTREE_LONG=1, which asks for full sizes
	OneCPU bool     // -test.cpu 1
	Volume bool     // on an ext4 file system in memory, with encryption (root)
}

// Row compares one figure of ours with that of peers. Figures are named as in
// the data: the benchmark's name, without "Benchmark" and processors, a space,
// the unit.
type Row struct {
	What  string
	Ours  string
	Peers []Peer
}

// Peer is who else does it.
type Peer struct {
	Name   string
	Figure string
}

// Bar is a figure that the project set itself.
type Bar struct {
	What   string
	Figure string
	// Over makes it a quotient: Figure by the best of these, within each round.
	Over   []string
	Scale  float64 // of the figure; 0 means 1
	Per    float64 // Per by the figure, when not 0: from a time to a rate
	Unit   string
	AtMost bool // else at least
	Target float64
}
