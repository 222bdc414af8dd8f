package moduleid_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
	"github.com/trusttree/trusttree/moduleid/spdm"
)

var update = flag.Bool("update", false, "write golden files")

// reported returns a node's report with everything that verifies it.
func reported(t testing.TB, p *pole) (*moduleid.Inventory, moduleid.ReportInput) {
	t.Helper()
	inv := p.inventory(t)
	_, err := inv.AdmitAll(t.Context())
	require.NoError(t, err)
	nonce := make([]byte, 32)
	rand.Read(nonce)
	_, body, err := inv.Collect(t.Context(), nonce)
	require.NoError(t, err)
	return inv, moduleid.ReportInput{Body: body, Node: node, Nonce: nonce, Bank: crypto.SHA256, PCRs: map[int][]byte{13: p.pcrs.values[crypto.SHA256][13]}}
}

// edit changes a report as a lying node can.
func edit(t *testing.T, body []byte, f func(r map[string]any)) []byte {
	t.Helper()
	var r map[string]any
	require.NoError(t, json.Unmarshal(body, &r))
	f(r)
	out, err := json.Marshal(r)
	require.NoError(t, err)
	return out
}

func TestThreat18NodeLiesAboutItsModules(t *testing.T) {
	p := newPole(t, "bay1", "bay2")
	inv, in := reported(t, p)
	_, err := p.v.VerifyReport(in)
	require.NoError(t, err)

	t.Run("a report for another nonce", func(t *testing.T) {
		in := in
		in.Nonce = bytes.Repeat([]byte{7}, 32)
		verdict, err := p.v.VerifyReport(in)
		assert.Equal(t, moduleid.ReasonProof, reasonOf(t, err))
		assert.Empty(t, verdict.Admitted())
	})
	t.Run("a report of another node", func(t *testing.T) {
		in := in
		in.Node = "node-8"
		_, err := p.v.VerifyReport(in)
		assert.ErrorIs(t, err, moduleid.ErrReport)
		in.Body = edit(t, in.Body, func(r map[string]any) { r["node"] = "node-8" })
		_, err = p.v.VerifyReport(in)
		assert.ErrorIs(t, err, moduleid.ErrReport, "the log's digests name the node")
	})
	t.Run("a module left out", func(t *testing.T) {
		in := in
		in.Body = edit(t, in.Body, func(r map[string]any) { r["modules"] = r["modules"].([]any)[:1] })
		_, err := p.v.VerifyReport(in)
		assert.Equal(t, moduleid.ReasonInventory, reasonOf(t, err))
	})
	t.Run("a module's evidence in another connector", func(t *testing.T) {
		in := in
		in.Body = edit(t, in.Body, func(r map[string]any) {
			m := r["modules"].([]any)
			m[1].(map[string]any)["evidence"] = m[0].(map[string]any)["evidence"]
		})
		_, err := p.v.VerifyReport(in)
		assert.Equal(t, moduleid.ReasonProof, reasonOf(t, err))
	})
	t.Run("a log that the TPM did not measure", func(t *testing.T) {
		in := in
		in.PCRs = map[int][]byte{13: make([]byte, 32)}
		_, err := p.v.VerifyReport(in)
		assert.ErrorIs(t, err, moduleid.ErrReport)
		assert.ErrorContains(t, err, "the quote says")
	})
	t.Run("no PCR value", func(t *testing.T) {
		in := in
		in.PCRs = nil
		_, err := p.v.VerifyReport(in)
		assert.ErrorIs(t, err, moduleid.ErrReport)
		in.UnsafeUnbound = true
		_, err = p.v.VerifyReport(in)
		assert.NoError(t, err)
	})
	t.Run("another inventory with the same PCR", func(t *testing.T) {
		in := in
		in.Body = edit(t, in.Body, func(r map[string]any) {
			r["log"].([]any)[0].(map[string]any)["content"].([]any)[1].(map[string]any)["class"] = "radio"
		})
		_, err := p.v.VerifyReport(in)
		assert.ErrorIs(t, err, moduleid.ErrReport)
		assert.ErrorContains(t, err, "not that of its content")
	})
	t.Run("the refused module is used after all", func(t *testing.T) {
		// The node admitted it; the cloud's registry does not know it.
		v := *p.v
		v.Registry = moduleid.Records{moduleid.ID(p.certs["bay1"]): {Class: "camera"}}
		verdict, err := v.VerifyReport(in)
		assert.Equal(t, moduleid.ReasonForeign, reasonOf(t, err))
		require.Len(t, verdict.Admitted(), 1)
		assert.Equal(t, "bay1", verdict.Admitted()[0].Connector())
	})
	t.Run("hot-plug is replayed", func(t *testing.T) {
		require.NoError(t, inv.Bay("bay2").Removed(t.Context()))
		_, err := inv.Bay("bay2").Admit(t.Context())
		require.NoError(t, err)
		_, body, err := inv.Collect(t.Context(), in.Nonce)
		require.NoError(t, err)
		in := in
		in.Body, in.PCRs = body, map[int][]byte{13: p.pcrs.values[crypto.SHA256][13]}
		_, err = p.v.VerifyReport(in)
		require.NoError(t, err)
		var r struct{ Log []json.RawMessage }
		require.NoError(t, json.Unmarshal(body, &r))
		assert.Len(t, r.Log, 3)
		in.Body = edit(t, body, func(r map[string]any) { r["log"] = r["log"].([]any)[2:] })
		_, err = p.v.VerifyReport(in)
		assert.ErrorIs(t, err, moduleid.ErrReport, "a removal that is hidden")
	})
}

func TestReportIsStrictJSON(t *testing.T) {
	p := newPole(t, "bay1")
	_, in := reported(t, p)
	for name, change := range map[string]func([]byte) []byte{
		"unknown field": func(b []byte) []byte { return bytes.Replace(b, []byte(`"version":2`), []byte(`"version":2,"x":1`), 1) },
		"key twice": func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"version":2`), []byte(`"version":2,"version":2`), 1)
		},
		"version 3":     func(b []byte) []byte { return bytes.Replace(b, []byte(`"version":2`), []byte(`"version":3`), 1) },
		"version 0":     func(b []byte) []byte { return bytes.Replace(b, []byte(`"version":2`), []byte(`"version":0`), 1) },
		"trailing data": func(b []byte) []byte { return append(b, " {}"...) },
		"empty":         func([]byte) []byte { return nil },
		"too large":     func([]byte) []byte { return bytes.Repeat([]byte(" "), 17<<20) },
		"too deep":      func([]byte) []byte { return []byte(strings.Repeat("[", 100)) },
		"null modules": func(b []byte) []byte {
			return []byte(`{"version":1,"node":"node-7","modules":[{"connector":"bay1","evidence":null}]}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := in
			in.Body = change(bytes.Clone(in.Body))
			_, err := p.v.VerifyReport(in)
			assert.ErrorIs(t, err, moduleid.ErrReport)
		})
	}
}

// golden is one report with what verifies it, for readers in years to come.
type golden struct {
	Nonce []byte          `json:"nonce"`
	PCR13 []byte          `json:"pcr13_sha256"`
	Root  []byte          `json:"root"`
	Body  json.RawMessage `json:"body"`
}

func TestGoldenReportVersion1(t *testing.T) {
	const file = "testdata/report-v1.json"
	p := newPole(t, "bay1")
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	var g golden
	require.NoError(t, json.Unmarshal(data, &g))
	v := *p.v
	v.Classes = map[string]moduleid.Class{"camera": {Members: poolOf(t, g.Root)}}
	verdict, err := v.VerifyReport(moduleid.ReportInput{Body: g.Body, Node: node, Nonce: g.Nonce, Bank: crypto.SHA256, PCRs: map[int][]byte{13: g.PCR13}})
	require.NoError(t, err)
	require.Len(t, verdict.Admitted(), 1)
	assert.Equal(t, g.PCR13, verdict.PCR(crypto.SHA256))
}

func TestGoldenReportVersion2(t *testing.T) {
	const file = "testdata/report-v2.json"
	p := newPole(t, "bay1", "bay2")
	if *update {
		p.chips["bay2"].Configure(func(z *[128]byte) { z[87] = 0x55 })
		inv := p.inventory(t)
		nonce := make([]byte, 32)
		rand.Read(nonce)
		_, body, err := inv.Collect(t.Context(), nonce)
		require.NoError(t, err)
		data, err := json.MarshalIndent(golden{nonce, p.pcrs.values[crypto.SHA256][13], p.ca.Certificate.Raw, body}, "", "  ")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file, append(data, '\n'), 0o644))
	}
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	var g golden
	require.NoError(t, json.Unmarshal(data, &g))
	v := *p.v
	v.Classes = map[string]moduleid.Class{"camera": {Members: poolOf(t, g.Root)}}
	verdict, err := v.VerifyReport(moduleid.ReportInput{Body: g.Body, Node: node, Nonce: g.Nonce, Bank: crypto.SHA256, PCRs: map[int][]byte{13: g.PCR13}})
	require.NoError(t, err)
	assert.Len(t, verdict.Admitted(), 1)
	require.Len(t, verdict.Refused(), 1)
	assert.Equal(t, moduleid.ReasonModel, verdict.Refused()[0].Reason())
	assert.Len(t, verdict.Refused()[0].Read, 128)
}

// What a driver refuses by itself is refused before there is evidence: the
// reason that was measured, the details and what was read reach the cloud.
func TestThreat18RefusalOfADriverReachesTheCloud(t *testing.T) {
	p := newPole(t, "bay1", "bay2", "bay3")
	p.chips["bay2"].Configure(func(z *[128]byte) { z[87] = 0x55 })
	p.bays[2].Open = func(context.Context) (moduleid.Chip, error) {
		r, _, err := moduleidtest.NewSPDM(p.ca, "radio", nil)
		if err != nil {
			return nil, err
		}
		return spdm.NewRequester(spdm.Loopback(r), spdm.Config{Scheme: spdm.Scheme{MinVersion: spdm.Version14}})
	}
	inv := p.inventory(t)
	nonce := make([]byte, 32)
	rand.Read(nonce)
	_, body, err := inv.Collect(t.Context(), nonce)
	require.NoError(t, err)
	in := moduleid.ReportInput{Body: body, Node: node, Nonce: nonce, Bank: crypto.SHA256, PCRs: map[int][]byte{13: p.pcrs.values[crypto.SHA256][13]}}
	verdict, err := p.v.VerifyReport(in)
	require.NoError(t, err, "what the node does not use is no error")
	require.Len(t, verdict.Refused(), 2)
	chip, radio := verdict.Refused()[0], verdict.Refused()[1]
	assert.Equal(t, "bay2", chip.Connector)
	assert.Equal(t, moduleid.ReasonModel, chip.Reason())
	assert.Contains(t, chip.Findings[0].Detail, "not locked")
	require.Len(t, chip.Read, 128)
	assert.Equal(t, byte(0x55), chip.Read[87], "the configuration zone that was read")
	assert.Equal(t, "bay3", radio.Connector)
	assert.Contains(t, radio.Findings[0].Detail, "at least 1.4")
	assert.Len(t, radio.ID, 64)
	assert.Contains(t, string(radio.Read), "\x10\x84\x00\x00", "the transcript that was refused")

	modules := func(r map[string]any) []any { return r["modules"].([]any) }
	refusal := func(r map[string]any) map[string]any {
		return modules(r)[1].(map[string]any)["refusal"].(map[string]any)
	}
	for name, lie := range map[string]func(r map[string]any){
		"another reason than was measured": func(r map[string]any) {
			refusal(r)["findings"].([]any)[0].(map[string]any)["reason"] = "silent"
		},
		"of an admitted module": func(r map[string]any) {
			modules(r)[0].(map[string]any)["refusal"] = refusal(r)
		},
		"no finding":         func(r map[string]any) { refusal(r)["findings"] = []any{} },
		"more than may be":   func(r map[string]any) { refusal(r)["read"] = make([]byte, 16<<10+1) },
		"in version 1":       func(r map[string]any) { r["version"] = 1 },
		"of no connector":    func(r map[string]any) { modules(r)[1].(map[string]any)["connector"] = "bay9" },
		"neither nor":        func(r map[string]any) { delete(modules(r)[1].(map[string]any), "refusal") },
		"a field of its own": func(r map[string]any) { refusal(r)["x"] = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			in := in
			in.Body = edit(t, body, lie)
			_, err := p.v.VerifyReport(in)
			require.ErrorIs(t, err, moduleid.ErrReport)
		})
	}
	t.Run("left out", func(t *testing.T) {
		in := in
		in.Body = edit(t, body, func(r map[string]any) { r["modules"] = modules(r)[:1] })
		verdict, err := p.v.VerifyReport(in)
		require.NoError(t, err)
		assert.Equal(t, moduleid.ReasonModel, verdict.Refused()[0].Reason(), "the measured reason is there all the same")
	})
}

func TestChallengeVectors(t *testing.T) {
	type vector struct {
		Nonce, Node, Connector, Context, Digest string
	}
	const file = "testdata/challenge.json"
	if *update {
		var vs []vector
		for _, c := range []moduleid.Challenge{
			{Nonce: [32]byte{1}, Node: "node-7", Connector: "bay1"},
			{Nonce: [32]byte{31: 255}, Node: "n", Connector: "c", Context: []byte("context")},
			moduleid.ChallengeFor(bytes.Repeat([]byte{0xaa}, 16), "node-7", "bay2"),
		} {
			d := c.Digest()
			vs = append(vs, vector{hex.EncodeToString(c.Nonce[:]), c.Node, c.Connector, hex.EncodeToString(c.Context), hex.EncodeToString(d[:])})
		}
		data, err := json.MarshalIndent(vs, "", "  ")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file, append(data, '\n'), 0o644))
	}
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	var vs []vector
	require.NoError(t, json.Unmarshal(data, &vs))
	require.NotEmpty(t, vs)
	for _, v := range vs {
		nonce, err := hex.DecodeString(v.Nonce)
		require.NoError(t, err)
		ctx, err := hex.DecodeString(v.Context)
		require.NoError(t, err)
		c := moduleid.Challenge{Nonce: [32]byte(nonce), Node: v.Node, Connector: v.Connector, Context: ctx}
		d := c.Digest()
		assert.Equal(t, v.Digest, hex.EncodeToString(d[:]))
	}
}

func TestMeasurementFailureEndsEverySession(t *testing.T) {
	for _, late := range []bool{false, true} {
		p := newPole(t, "bay1")
		inv := p.inventory(t)
		p.pcrs.fail, p.pcrs.late = errors.New("TPM is busy"), late
		_, err := inv.AdmitAll(t.Context())
		require.ErrorContains(t, err, "TPM is busy")
		assert.False(t, inv.Bay("bay1").Entry().Admitted())
		_, err = inv.Bay("bay1").Admit(t.Context())
		assert.Equal(t, late, err == nil, "what the TPM holds already needs no further extend")

		p.pcrs.fail = nil
		_, err = inv.AdmitAll(t.Context())
		require.NoError(t, err)
		_, body, err := inv.Collect(t.Context(), make([]byte, 32))
		require.NoError(t, err)
		_, err = p.v.VerifyReport(moduleid.ReportInput{Body: body, Node: node, Nonce: make([]byte, 32), Bank: crypto.SHA256, PCRs: map[int][]byte{13: p.pcrs.values[crypto.SHA256][13]}})
		require.NoError(t, err, "the log explains the PCR, whether the TPM extended before it failed or not")
	}
}

func TestRestartOfTheProcessKeepsTheLog(t *testing.T) {
	p := newPole(t, "bay1")
	var saved []byte
	cfg := moduleid.InventoryConfig{Node: node, Verifier: p.v, Bays: p.bays, PCRs: p.pcrs, SaveLog: func(b []byte) error { saved = b; return nil }}
	start := func(log []byte) (*moduleid.Inventory, error) {
		cfg.Log = log
		inv, err := moduleid.NewInventory(cfg)
		require.NoError(t, err)
		_, err = inv.AdmitAll(t.Context())
		return inv, err
	}
	_, err := start(nil)
	require.NoError(t, err)
	_, err = start(nil)
	require.ErrorContains(t, err, "reboot the node", "a log that was lost")

	// A crash between the log and the extend.
	p.pcrs.fail = errors.New("power cut")
	inv, err := start(saved)
	require.NoError(t, err, "nothing changed")
	require.Error(t, inv.Bay("bay1").Removed(t.Context()))
	p.pcrs.fail = nil
	inv, err = start(saved)
	require.NoError(t, err)
	_, body, err := inv.Collect(t.Context(), make([]byte, 32))
	require.NoError(t, err)
	_, err = p.v.VerifyReport(moduleid.ReportInput{Body: body, Node: node, Nonce: make([]byte, 32), Bank: crypto.SHA256, PCRs: map[int][]byte{13: p.pcrs.values[crypto.SHA256][13]}})
	require.NoError(t, err)

	t.Run("a log cut off by a power cut", func(t *testing.T) {
		_, err := start(saved[:20])
		assert.Error(t, err)
		_, err = start(append(bytes.Clone(saved), `{"recnum":7`...))
		assert.NoError(t, err)
	})
	t.Run("a log that was changed", func(t *testing.T) {
		cfg.Log = bytes.Replace(saved, []byte("camera"), []byte("cabera"), 1)
		_, err := moduleid.NewInventory(cfg)
		assert.ErrorContains(t, err, "not that of its content")
	})
	t.Run("a log that can't be kept", func(t *testing.T) {
		cfg.Log, cfg.SaveLog = saved, func([]byte) error { return errors.New("disk full") }
		inv, err := moduleid.NewInventory(cfg)
		require.NoError(t, err)
		_, err = inv.AdmitAll(t.Context())
		require.NoError(t, err)
		require.ErrorContains(t, inv.Bay("bay1").Removed(t.Context()), "disk full")
	})
}

func TestCollectHonoursItsContext(t *testing.T) {
	p := newPole(t, "bay1")
	inv := p.inventory(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := inv.Collect(ctx, make([]byte, 32))
	require.ErrorIs(t, err, context.Canceled)
	_, _, err = inv.Collect(t.Context(), make([]byte, 15))
	require.ErrorContains(t, err, "15 bytes")
}

func TestRecordsFile(t *testing.T) {
	id := strings.Repeat("0a", 32)
	want := moduleid.Records{id: {ID: id, Class: "camera", Model: "ATECC608B", Node: "node-7", Connectors: []string{"bay1"}}}
	data, err := json.Marshal(want)
	require.NoError(t, err)
	got, err := moduleid.ParseRecords(data)
	require.NoError(t, err)
	assert.Equal(t, want, got)
	golden, err := os.ReadFile("testdata/records-v1.json")
	require.NoError(t, err)
	got, err = moduleid.ParseRecords(golden)
	require.NoError(t, err)
	assert.Equal(t, want, got)
	for name, bad := range map[string]string{
		"unknown field": `{"version":1,"modules":[],"x":1}`,
		"short ID":      `{"version":1,"modules":[{"id":"0a","class":"c"}]}`,
		"upper case":    `{"version":1,"modules":[{"id":"` + strings.ToUpper(id) + `","class":"c"}]}`,
		"no class":      `{"version":1,"modules":[{"id":"` + id + `","class":""}]}`,
		"twice":         `{"version":1,"modules":[{"id":"` + id + `","class":"c"},{"id":"` + id + `","class":"d"}]}`,
		"no version":    `{"modules":[]}`,
	} {
		_, err := moduleid.ParseRecords([]byte(bad))
		assert.Error(t, err, name)
	}
}

func FuzzVerifyReport(f *testing.F) {
	data, err := os.ReadFile("testdata/report-v1.json")
	require.NoError(f, err)
	var g golden
	require.NoError(f, json.Unmarshal(data, &g))
	f.Add([]byte(g.Body))
	p := newPole(f, "bay1")
	p.v.Classes = map[string]moduleid.Class{"camera": {Members: poolOf(f, g.Root)}}
	id := ""
	f.Fuzz(func(t *testing.T, body []byte) {
		verdict, err := p.v.VerifyReport(moduleid.ReportInput{Body: body, Node: node, Nonce: g.Nonce, Bank: crypto.SHA256, PCRs: map[int][]byte{13: g.PCR13}})
		if err != nil {
			return
		}
		// Whatever passes is the golden module.
		require.Len(t, verdict.Admitted(), 1)
		if id == "" {
			id = verdict.Admitted()[0].ID()
		}
		require.Equal(t, id, verdict.Admitted()[0].ID())
	})
}

func FuzzInventoryLog(f *testing.F) {
	p := newPole(f, "bay1")
	var saved []byte
	inv, err := moduleid.NewInventory(moduleid.InventoryConfig{Node: node, Verifier: p.v, Bays: p.bays, SaveLog: func(b []byte) error { saved = b; return nil }})
	require.NoError(f, err)
	_, err = inv.AdmitAll(f.Context())
	require.NoError(f, err)
	f.Add(saved)
	f.Fuzz(func(t *testing.T, log []byte) {
		_, _ = moduleid.NewInventory(moduleid.InventoryConfig{Node: node, Verifier: p.v, Bays: p.bays, Log: log})
	})
}

func FuzzParseRecords(f *testing.F) {
	golden, err := os.ReadFile("testdata/records-v1.json")
	require.NoError(f, err)
	f.Add(golden)
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := moduleid.ParseRecords(data)
		if err != nil {
			return
		}
		out, err := json.Marshal(r)
		require.NoError(t, err)
		again, err := moduleid.ParseRecords(out)
		require.NoError(t, err)
		require.Equal(t, len(r), len(again))
	})
}
