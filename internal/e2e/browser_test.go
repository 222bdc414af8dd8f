package e2e_test

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/city"
	"github.com/trusttree/trusttree/internal/testenv"
)

// browser is a headless Chromium that is driven over its pipe (DevTools
// protocol): messages of JSON with a zero byte behind each.
type browser struct {
	t       *testing.T
	in      *os.File
	out     *bufio.Reader
	id      int
	session string
}

func openBrowser(t *testing.T) *browser {
	chromium := testenv.Tool(t, "chromium", "chromium")
	toR, toW, err := os.Pipe()
	must(t, err)
	fromR, fromW, err := os.Pipe()
	must(t, err)
	cmd := exec.Command(chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
		"--user-data-dir="+t.TempDir(), "--remote-debugging-pipe", "--window-size=1200,900", "about:blank")
	cmd.ExtraFiles = []*os.File{toR, fromW} // descriptors 3 and 4
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	_, _ = toR.Close(), fromW.Close()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		_, _ = toW.Close(), fromR.Close()
	})
	b := &browser{t: t, in: toW, out: bufio.NewReaderSize(fromR, 1<<20)}
	var target struct {
		TargetID string `json:"targetId"`
	}
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct {
		SessionID string `json:"sessionId"`
	}
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	b.call("Page.enable", nil, nil)
	return b
}

// call sends a command and waits for its result.
func (b *browser) call(method string, params any, result any) {
	b.t.Helper()
	b.id++
	msg := map[string]any{"id": b.id, "method": method}
	if params != nil {
		msg["params"] = params
	}
	if b.session != "" {
		msg["sessionId"] = b.session
	}
	data, err := json.Marshal(msg)
	must(b.t, err)
	_, err = b.in.Write(append(data, 0))
	must(b.t, err)
	for {
		line, err := b.out.ReadBytes(0)
		require.NoError(b.t, err, method)
		var answer struct {
			ID     int             `json:"id"`
			Result json.RawMessage `json:"result"`
			Error  json.RawMessage `json:"error"`
		}
		must(b.t, json.Unmarshal(line[:len(line)-1], &answer))
		if answer.ID != b.id {
			continue // an event
		}
		require.Empty(b.t, string(answer.Error), method)
		if result != nil {
			must(b.t, json.Unmarshal(answer.Result, result))
		}
		return
	}
}

// eval evaluates an expression in the page and returns it as text.
func (b *browser) eval(expression string) string {
	b.t.Helper()
	var r struct {
		Result struct {
			Value any `json:"value"`
		} `json:"result"`
	}
	b.call("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true}, &r)
	return fmt.Sprint(r.Result.Value)
}

func (b *browser) open(url string) {
	b.t.Helper()
	b.call("Page.navigate", map[string]any{"url": url}, nil)
	b.await("document.readyState", "complete", 20*time.Second)
}

// await waits until an expression has a value, without touching the page.
func (b *browser) await(expression, want string, within time.Duration) time.Duration {
	b.t.Helper()
	start := time.Now()
	var got string
	for time.Since(start) < within {
		if got = b.eval(expression); got == want {
			return time.Since(start)
		}
		time.Sleep(50 * time.Millisecond)
	}
	b.t.Fatalf("%s is %q after %v, not %q", expression, got, within, want)
	return 0
}

// Expressions about the page of one node.
const (
	stateText  = `document.querySelector("h1 .state").textContent`
	stateColor = `getComputedStyle(document.querySelector("h1 .state")).backgroundColor`
	whyText    = `document.querySelector(".reasons") ? document.querySelector(".reasons").textContent : ""`
)

// TestPageInABrowser watches the operator page in a real browser while a module
// is pulled, a node boots something else, and a node is revoked: each changes
// colour and says why, within seconds, and nobody reloads the page.
func TestPageInABrowser(t *testing.T) {
	b := openBrowser(t)
	ctx := t.Context()
	c, err := city.Found(ctx, city.Config{Dir: t.TempDir(), Bin: build(t), Tenants: tenants[:2]})
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			keepLogs(t, c)
		}
		assert.NoError(t, c.Close())
	})
	must(t, c.StartCloud(ctx, 0))
	must(t, c.CreateTenants(ctx))
	n, err := c.NewNode(ctx, "node", nil)
	must(t, err)
	must(t, c.Owner.Assign(ctx, n.Device))
	page := "http://" + c.Clouds[0].Page
	b.open(page)
	assert.Contains(t, b.eval(`document.querySelector("main").textContent`), "No node has enrolled yet")
	must(t, n.Start(ctx))
	b.await(`document.querySelectorAll("tr .affirming").length`, "1", 20*time.Second) // by itself
	b.open(page + "/nodes/" + n.Device)
	b.await(stateText, "affirming", 20*time.Second)
	b.await(`document.querySelectorAll(".link.ok").length > 7`, "true", 30*time.Second)
	green := b.eval(stateColor)
	assert.Equal(t, "0", b.eval(`document.querySelectorAll(".link.bad").length`))
	b.screenshot("page.png")

	// A pulled module.
	n.PullCamera()
	took := b.await(stateText, "contraindicated", 30*time.Second)
	red := b.eval(stateColor)
	assert.NotEqual(t, green, red)
	assert.Contains(t, b.eval(whyText), "bay-1")
	t.Logf("pulled module: red after %.1f s: %s", took.Seconds(), b.eval(whyText))
	must(t, n.PlugCamera(ctx, c.CameraCA))
	took = b.await(stateText, "affirming", 90*time.Second)
	t.Logf("module back: green after %.1f s", took.Seconds())

	// A tampered boot.
	must(t, n.Proc.Stop())
	must(t, n.Power(ctx, city.TamperedBoot))
	must(t, n.Run())
	took = b.await(stateText, "contraindicated", 60*time.Second)
	assert.Contains(t, b.eval(whyText), "PCR")
	t.Logf("tampered boot: red after %.1f s of a start", took.Seconds())
	must(t, n.Proc.Stop())
	must(t, n.Power(ctx, city.GoodBoot))
	must(t, n.Run())
	b.await(stateText, "affirming", 60*time.Second)

	// A revoked node.
	_, err = c.Owner.Call(ctx, 0, http.MethodPost, "/v1/admin/nodes/"+n.Device+"/revoke", nil)
	must(t, err)
	took = b.await(stateText, "revoked", 20*time.Second)
	assert.Contains(t, b.eval(whyText), "revoked by operator")
	t.Logf("revoked: red after %.1f s", took.Seconds())

	for path, says := range map[string]string{"/tenants": "lighting", "/rollouts": "No release is published", "/events": "node.revoked", "/?state=revoked": n.Device[:16]} {
		b.open(page + path)
		assert.Contains(t, b.eval(`document.querySelector("main").textContent`), says, path)
	}
	b.open(page)
	// The cloud goes: the page says that it may be old, and comes back.
	must(t, c.Clouds[0].Proc.Stop())
	b.await(`document.body.classList.contains("offline")`, "true", 20*time.Second)
	must(t, c.StartCloud(ctx, 0))
	b.await(`document.body.classList.contains("offline")`, "false", 30*time.Second)
	b.await(`document.querySelectorAll("tr .revoked").length`, "1", 10*time.Second) // after a restart, too
}

// screenshot writes the page's picture for the docs.
func (b *browser) screenshot(name string) {
	var shot struct {
		Data string `json:"data"`
	}
	b.call("Page.captureScreenshot", map[string]any{"format": "png"}, &shot)
	if !*updateDocs {
		return
	}
	data, err := base64.StdEncoding.DecodeString(shot.Data)
	must(b.t, err)
	must(b.t, os.WriteFile(filepath.Join(testenv.Repo(), "docs", name), data, 0o644))
}
