package perf

import (
	"cmp"
	"slices"
	"strings"
)

// Parts are the page, in its order. A figure of a new benchmark gets onto the
// page by a row here and "ci/generate.sh performance PART".
func Parts() []Part {
	return slices.Concat(edge(), paths(), whole())
}

// one makes a row of benchmarks "PREFIX/NAME UNIT", where a peer's name in the
// data is its name.
func one(what, prefix, ours, unit string, peers ...string) Row {
	r := Row{What: what, Ours: prefix + "/" + ours + " " + unit}
	for _, p := range peers {
		r.Peers = append(r.Peers, Peer{p, prefix + "/" + p + " " + unit})
	}
	return r
}

func edge() []Part {
	eventlog := Part{
		Name: "eventlog", Title: "Event logs",
		About: "Parse a TCG event log and replay it against the PCR values of the same boot. uki and shim are boots of this repository's test machine; the two of some 50 KB are a bare-metal and a confidential virtual machine's, and not part of the repository (`TRUSTTREE_CORPUS` names where they are).",
		Runs: []Run{
			{Dir: "secureboot/internal/peerbench", Bench: []string{"ParseAndReplay"}, Time: "0.3s"},
			{Dir: "secureboot", Bench: []string{"Appraise", "Hostile1MiB"}, Time: "0.2s", Rounds: 3},
			{Dir: "secureboot/ima", Bench: []string{"Verify100000Entries", "Resume100OfOne100000"}, Time: "0.2s", Rounds: 3},
		},
	}
	for _, log := range []string{"uki", "shim", "keylime-49k", "snp-45k"} {
		prefix := "ParseAndReplay/" + log
		eventlog.Rows = append(eventlog.Rows,
			one("parse and replay, "+log, prefix, "trusttree", "ns/op", "go-eventlog", "go-attestation"),
			one("the same, memory allocated", prefix, "trusttree", "B/op", "go-eventlog", "go-attestation"))
		if log == "uki" || log == "shim" {
			continue
		}
		eventlog.Bars = append(eventlog.Bars,
			Bar{What: "parse and replay, " + log, Figure: prefix + "/trusttree ns/op", Scale: 1e-3, Unit: "µs", AtMost: true, Target: 40},
			Bar{What: "allocations, " + log, Figure: prefix + "/trusttree allocs/op", AtMost: true, Target: 10},
			Bar{What: "go-eventlog's time by ours, " + log, Figure: prefix + "/go-eventlog ns/op", Over: []string{prefix + "/trusttree ns/op"}, Unit: "×", Target: 3},
			Bar{What: "go-attestation's time by ours, " + log, Figure: prefix + "/go-attestation ns/op", Over: []string{prefix + "/trusttree ns/op"}, Unit: "×", Target: 3})
	}
	for _, how := range []string{"rules", "pinned"} {
		eventlog.Bars = append(eventlog.Bars, Bar{What: "appraisals a second, signatures aside, " + how, Figure: "Appraise/" + how + " appraisals/s", Target: 20000})
	}
	for _, log := range []string{"IMA-entries", "IMA-entries-of-one-name", "authorities", "events", "images", "signature-lists", "signatures", "test-keys", "user-space-records"} {
		hostile, what := "Hostile1MiB/"+log, strings.ReplaceAll(log, "-", " ")
		eventlog.Bars = append(eventlog.Bars,
			Bar{What: "hostile logs of 1 MiB, " + what, Figure: hostile + " ns/op", Scale: 1e-6, Unit: "ms", AtMost: true, Target: 20},
			Bar{What: "the same, memory", Figure: hostile + " B/op", Scale: 1.0 / (1 << 20), Unit: "MiB", AtMost: true, Target: 8})
	}
	eventlog.Bars = append(eventlog.Bars,
		Bar{What: "IMA log of 100,000 entries", Figure: "Verify100000Entries ns/op", Scale: 1e-9, Unit: "s", AtMost: true, Target: 0.25},
		Bar{What: "100 entries more, of the time of 100,000", Figure: "Resume100OfOne100000 ns/op", Over: []string{"Verify100000Entries ns/op"}, Scale: 1000, Unit: "‰", AtMost: true, Target: 5})

	quotes := Part{
		Name: "quotes", Title: "Quotes",
		About: "Verify one quote over eight PCRs of SHA-256 on one core. Processor time, the least of rounds of twenty that take turns within one benchmark. The bare signature is what any verifier must do at least.",
		Runs:  []Run{{Dir: "attest/internal/peerbench", Bench: []string{"Quote"}, Time: "0.3s", OneCPU: true}},
	}
	for kind, least := range map[string]float64{"P-256": 8000, "RSA-2048": 20000} {
		in := "Quote/" + kind + "/interleaved "
		quotes.Rows = append(quotes.Rows, Row{What: "verify, " + kind, Ours: in + "ours-ns", Peers: []Peer{
			{"go-attestation", in + "go-attestation-ns"}, {"go-tpm-tools", in + "go-tpm-tools-ns"}, {"the bare signature", in + "bare-signature-ns"}}})
		quotes.Bars = append(quotes.Bars,
			Bar{What: "verifications a second and core, " + kind, Figure: in + "ours-ns", Per: 1e9, Target: least},
			Bar{What: "our time by the bare signature's, " + kind, Figure: in + "ours-ns", Over: []string{in + "bare-signature-ns"}, Unit: "×", AtMost: true, Target: 1.35},
			Bar{What: "allocations, " + kind, Figure: "Quote/" + kind + "/ours allocs/op", AtMost: true, Target: 20},
			Bar{What: "go-attestation's time by ours, " + kind, Figure: in + "go-attestation-ns", Over: []string{in + "ours-ns"}, Unit: "×", Target: 1},
			Bar{What: "go-tpm-tools' time by ours, " + kind, Figure: in + "go-tpm-tools-ns", Over: []string{in + "ours-ns"}, Unit: "×", Target: 1})
	}
	slices.SortStableFunc(quotes.Rows, func(a, b Row) int { return cmp.Compare(a.What, b.What) })
	slices.SortStableFunc(quotes.Bars, func(a, b Bar) int { return cmp.Compare(a.What, b.What) })

	modules := Part{
		Name: "modules", Title: "Modules",
		About: "Sixteen emulated ATECC608 chips on one bus of 100 kHz, at the longest times of the data sheet, prove themselves again; and what one proof costs the host, beside the verification of the same chain and signature alone.",
		Runs: []Run{
			{Dir: "moduleid/atecc", Bench: []string{"SixteenChips"}, Time: "2x", Rounds: 3},
			{Dir: "moduleid/atecc", Bench: []string{"HostCost"}, Time: "0.5s"},
		},
		Rows: []Row{
			one("sixteen chips, pipelined", "SixteenChips", "pipelined", "ns/op", "one-by-one"),
			{What: "host's time for a proof", Ours: "HostCost/verifier ns/op", Peers: []Peer{{"the bare verification", "HostCost/bare ns/op"}}},
		},
		Bars: []Bar{
			{What: "sixteen chips, pipelined", Figure: "SixteenChips/pipelined ns/op", Scale: 1e-9, Unit: "s", AtMost: true, Target: 0.6},
			{What: "host's time by the bare verification's", Figure: "HostCost/verifier ns/op", Over: []string{"HostCost/bare ns/op"}, Unit: "×", AtMost: true, Target: 1.2},
		},
	}
	return []Part{eventlog, quotes, modules}
}
