package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/eventlog"
)

// resultJSON is the command's contract: fields are not renamed or added.
type resultJSON struct {
	Status     secureboot.Status     `json:"status"`
	Quote      quoteState            `json:"quote"`
	SecureBoot secureBootJSON        `json:"secure_boot"`
	Findings   []findingJSON         `json:"findings"`
	PCRs       map[string]statusJSON `json:"pcrs"`
}

type secureBootJSON struct {
	Enabled   *bool  `json:"enabled"` // null: unknown
	Mode      string `json:"mode"`
	Enforcing bool   `json:"enforcing"`
}

type findingJSON struct {
	Code   secureboot.Code `json:"code"`
	PCR    int             `json:"pcr"`    // -1: of no PCR
	Event  int             `json:"event"`  // -1: of no event
	Detail string          `json:"detail"` // starts with "note: " when the finding does not lower the status
}

type statusJSON struct {
	secureboot.PCRStatus
	Value string `json:"value,omitempty"`
}

func printJSON(w io.Writer, r *secureboot.Result, q quoteResult, ev secureboot.Evidence) error {
	j := resultJSON{Status: r.Status, Quote: q.state, Findings: []findingJSON{}, PCRs: map[string]statusJSON{}}
	j.SecureBoot.Mode = secureboot.ModeUnknown.String()
	if s := r.SecureBoot; s != nil {
		j.SecureBoot.Mode, j.SecureBoot.Enforcing = s.Mode.String(), r.Enforcing
		if on := s.Enabled == secureboot.Yes; s.Enabled != secureboot.Unknown {
			j.SecureBoot.Enabled = &on
		}
	}
	for _, f := range r.Findings {
		if f.Severity == secureboot.Affirming {
			f.Detail = "note: " + f.Detail
		}
		j.Findings = append(j.Findings, findingJSON{f.Code, f.PCR, f.Event, f.Detail})
	}
	for pcr, s := range r.PCRs {
		j.PCRs[fmt.Sprint(pcr)] = statusJSON{s, hex.EncodeToString(ev.PCRs[pcr])}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", " ")
	return enc.Encode(j)
}

// names of the PCRs (PFP section 3.3.4; systemd's TPM2 PCR registry).
var names = map[int]string{0: "firmware", 1: "firmware settings", 2: "option ROMs", 3: "option ROM settings", 4: "boot loader", 5: "partitions", 6: "host platform",
	7: "Secure Boot keys", 8: "GRUB commands", 9: "initrd, command line", 10: "IMA", 11: "unified kernel image", 12: "kernel parameters", 13: "modules",
	14: "machine owner keys", 15: "system identity"}

func printTable(w io.Writer, r *secureboot.Result, q quoteResult, ev secureboot.Evidence) error {
	fmt.Fprintf(w, "verdict      %s\nquote        %s\n", r.Status, q.state)
	if r.Policy != "" {
		fmt.Fprintf(w, "policy       %s\n", printable(r.Policy))
	}
	if s := r.SecureBoot; s != nil {
		fmt.Fprintf(w, "secure boot  enabled %s, mode %s, enforcing %v\n", s.Enabled, s.Mode, r.Enforcing)
		for _, a := range s.Authorities {
			fmt.Fprintf(w, "authority    %s\n", printable(a.ID()))
		}
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "PCR\twhat\tevents\tjudgement\texplained by")
	for _, pcr := range slices.Sorted(maps.Keys(r.PCRs)) {
		s := r.PCRs[pcr]
		if s.Detail == "unused" || s.Detail == "ignored" && s.Events == 0 && pcr > 15 {
			continue
		}
		fmt.Fprintf(t, "%d\t%s\t%d\t%s\t%s\n", pcr, names[pcr], s.Events, s.Status, s.Detail)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(r.Findings) > 0 {
		fmt.Fprintln(w, "\nfindings")
		for _, f := range r.Findings {
			fmt.Fprintf(w, "  %-15s %s\n", f.Severity, f)
		}
	}
	return printEvents(w, r, ev)
}

// printEvents lists the log as it tells it, and marks the events that findings
// name.
func printEvents(w io.Writer, r *secureboot.Result, ev secureboot.Evidence) error {
	log, err := eventlog.Parse(ev.EventLog, nil)
	if err != nil {
		return nil // a finding says so
	}
	fmt.Fprintln(w, "\nevents, as the log tells them")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for e := range log.Events() {
		d := e.Digest(ev.Bank)
		mark := ""
		for _, f := range r.Findings {
			if f.Event == e.Num && f.PCR == e.PCR && f.PCR != 10 && f.Severity > secureboot.Affirming {
				mark = string(f.Code)
			}
		}
		fmt.Fprintf(t, "  %d\tPCR %d\t%s\t%x\t%s\t%s\n", e.Num, e.PCR, strings.TrimPrefix(e.Type.String(), "EV_"), d[:min(len(d), 6)], mark, e.Hint())
	}
	return t.Flush()
}

// printable keeps text of logs and policies from reaching a terminal raw.
func printable(s string) string {
	q := fmt.Sprintf("%+q", s)
	return q[1 : len(q)-1]
}
