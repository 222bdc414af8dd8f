package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

// record is one line of a daemon's structured log.
type record map[string]any

func (r record) str(key string) string {
	s, _ := r[key].(string)
	return s
}

// matches reports whether the record has these attributes, given as pairs.
func (r record) matches(pairs ...string) bool {
	for i := 0; i+1 < len(pairs); i += 2 {
		if r.str(pairs[i]) != pairs[i+1] {
			return false
		}
	}
	return true
}

// proc is a child process whose log the demo reads: it shows what the real
// binaries say, not what the demo thinks of them.
type proc struct {
	name string
	cmd  *exec.Cmd
	out  *os.File // everything it logged, for -keep and for failures

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every record
	records []record
	tail    []string
	ended   bool
	err     error
}

// start runs a binary. log is the file that gets a copy of its output.
func start(name, log, binary string, args ...string) (*proc, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	p := &proc{name: name, out: out, changed: make(chan struct{}), cmd: exec.Command(binary, args...)}
	p.cmd.SysProcAttr = tpmtest.DieWithParent()
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go p.follow(stderr)
	return p, nil
}

func (p *proc) follow(r io.Reader) {
	lines := bufio.NewScanner(io.TeeReader(r, p.out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var rec record
		_ = json.Unmarshal(lines.Bytes(), &rec)
		p.mu.Lock()
		if rec != nil {
			p.records = append(p.records, rec)
		}
		p.tail = append(p.tail, lines.Text())
		if len(p.tail) > 12 {
			p.tail = p.tail[1:]
		}
		close(p.changed)
		p.changed = make(chan struct{})
		p.mu.Unlock()
	}
	err := p.cmd.Wait()
	p.mu.Lock()
	p.ended, p.err = true, err
	close(p.changed)
	p.changed = make(chan struct{})
	p.mu.Unlock()
	_ = p.out.Close()
}

// mark is a position in a process' log.
func (p *proc) mark() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.records)
}

// await returns the first record behind position from that has the attributes,
// waiting for it at most wait.
func (p *proc) await(ctx context.Context, from int, wait time.Duration, pairs ...string) (record, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		p.mu.Lock()
		for ; from < len(p.records); from++ {
			if p.records[from].matches(pairs...) {
				defer p.mu.Unlock()
				return p.records[from], nil
			}
		}
		changed, ended := p.changed, p.ended
		p.mu.Unlock()
		if ended {
			return nil, p.failure(fmt.Errorf("%s ended (%v) before it logged %v", p.name, p.err, pairs))
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, p.failure(fmt.Errorf("%s did not log %v within %v", p.name, pairs, wait))
		}
	}
}

func (p *proc) failure(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Errorf("%w; its last lines:\n%s", err, strings.Join(p.tail, "\n"))
}

// stop ends the process in order, and by force after five seconds.
func (p *proc) stop() error {
	if p == nil {
		return nil
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	for deadline := time.After(5 * time.Second); ; {
		p.mu.Lock()
		changed, ended := p.changed, p.ended
		p.mu.Unlock()
		if ended {
			return nil
		}
		select {
		case <-changed:
		case <-deadline:
			_ = p.cmd.Process.Kill()
			return errors.New(p.name + " did not stop in order")
		}
	}
}

// peakRSS returns the most memory that the process has held, such as "17412 kB",
// where the kernel tells.
func (p *proc) peakRSS() string {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return "unknown"
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(line)
}
