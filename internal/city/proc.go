package city

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

// Record is one line of a daemon's structured log.
type Record map[string]any

// Str returns a text attribute, empty when it is not there.
func (r Record) Str(key string) string {
	s, _ := r[key].(string)
	return s
}

// matches reports whether the record has these attributes, given as pairs.
func (r Record) matches(pairs ...string) bool {
	for i := 0; i+1 < len(pairs); i += 2 {
		if r.Str(pairs[i]) != pairs[i+1] {
			return false
		}
	}
	return true
}

// Proc is a child process whose structured log is read: what the real binaries
// say, not what a test thinks of them. It dies with its parent.
type Proc struct {
	name string
	cmd  *exec.Cmd
	out  *os.File // everything it logged, for -keep and for failures

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every record
	records []Record
	tail    []string
	ended   bool
	err     error
}

// Start runs a command. log is the file that gets a copy of its output.
func Start(name, log string, cmd *exec.Cmd) (*Proc, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	p := &Proc{name: name, out: out, changed: make(chan struct{}), cmd: cmd}
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

func (p *Proc) follow(r io.Reader) {
	lines := bufio.NewScanner(io.TeeReader(r, p.out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var rec Record
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

// Mark is a position in a process' log.
func (p *Proc) Mark() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.records)
}

// Await returns the first record behind position from that has the attributes,
// waiting for it at most wait.
func (p *Proc) Await(ctx context.Context, from int, wait time.Duration, pairs ...string) (Record, error) {
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

// AwaitEnd waits until the process has ended by itself, at most wait.
func (p *Proc) AwaitEnd(ctx context.Context, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		p.mu.Lock()
		changed, ended := p.changed, p.ended
		p.mu.Unlock()
		if ended {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return p.failure(fmt.Errorf("%s did not end within %v", p.name, wait))
		}
	}
}

func (p *Proc) failure(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Errorf("%w; its last lines:\n%s", err, strings.Join(p.tail, "\n"))
}

// Kill ends the process at once, as a power cut does, and waits for its end.
func (p *Proc) Kill() {
	_ = p.cmd.Process.Kill()
	for {
		p.mu.Lock()
		changed, ended := p.changed, p.ended
		p.mu.Unlock()
		if ended {
			return
		}
		<-changed
	}
}

// Running reports whether the process has not ended.
func (p *Proc) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.ended
}

// Records returns what it logged from a position on, with these attributes.
func (p *Proc) Records(from int, pairs ...string) (out []Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.records[min(from, len(p.records)):] {
		if r.matches(pairs...) {
			out = append(out, r)
		}
	}
	return out
}

// Stop ends the process in order, and by force after five seconds.
func (p *Proc) Stop() error {
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

// PeakRSS returns the most memory that the process has held, such as "17412 kB",
// where the kernel tells.
func (p *Proc) PeakRSS() string {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return "unknown"
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(line)
}
