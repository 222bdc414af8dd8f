package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/trusttree/trusttree/internal/perf"
)

// perRun bounds one start of a benchmark binary.
const perRun = 8 * time.Minute

// runner measures parts in rounds. Its state directory keeps each round that
// is done in a file of its own.
type runner struct {
	repo   string
	o      options
	state  string
	config []string
	bins   map[string]string
	tmp    string
}

func measure(ctx context.Context, repo string, o options, parts []perf.Part) error {
	began := time.Now()
	config, commit := machine(ctx, repo)
	id := sha256.Sum256([]byte(repo + commit + o.benchtime + output(ctx, repo, "git", "diff", "HEAD", "--", ":!docs")))
	r := &runner{repo: repo, o: o, config: config, bins: map[string]string{},
		state: filepath.Join(os.TempDir(), fmt.Sprintf("trusttree-measure-%x", id[:6]))}
	if o.fresh {
		if err := os.RemoveAll(r.state); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(r.state, 0o700); err != nil {
		return err
	}
	var err error
	if r.tmp, err = os.MkdirTemp("", "measure"); err != nil {
		return err
	}
	defer os.RemoveAll(r.tmp)
	if err := r.build(ctx, parts); err != nil {
		return err
	}
	done, built := 0, time.Now()
	for round := 1; round <= o.rounds; round++ {
		if round > 1 && time.Since(began) > o.limit {
			fmt.Printf("the time limit of %s is over: %d rounds\n", o.limit, round-1)
			break
		}
		for i, p := range parts {
			fmt.Printf("round %d of %d, part %d of %d: %-10s after %s", round, o.rounds, i+1, len(parts), p.Name, time.Since(began).Round(time.Second))
			if done > 0 {
				left := time.Since(built) / time.Duration(done) * time.Duration(len(parts)*o.rounds-(round-1)*len(parts)-i)
				fmt.Printf(", at most some %s left", left.Round(time.Minute))
			}
			fmt.Println()
			if err := r.round(ctx, p, round); err != nil {
				return err
			}
			done++
		}
	}
	for _, p := range parts {
		if err := r.collect(ctx, p); err != nil {
			return err
		}
	}
	return os.RemoveAll(r.state)
}

// build compiles every package's benchmarks once.
func (r *runner) build(ctx context.Context, parts []perf.Part) error {
	for _, p := range parts {
		for _, run := range p.Runs {
			if r.bins[run.Dir] != "" {
				continue
			}
			bin := filepath.Join(r.tmp, strings.ReplaceAll(run.Dir, "/", "-")+".test")
			fmt.Println("building", run.Dir)
			cmd := exec.CommandContext(ctx, "go", "test", "-c", "-o", bin, ".")
			cmd.Dir = filepath.Join(r.repo, run.Dir)
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("build %s: %w\n%s", run.Dir, err, out)
			}
			r.bins[run.Dir] = bin
		}
	}
	return nil
}

func (r *runner) file(p perf.Part, round int) string {
	return filepath.Join(r.state, fmt.Sprintf("%s.%d", p.Name, round))
}

// round measures a part once, unless that is done already.
func (r *runner) round(ctx context.Context, p perf.Part, round int) error {
	name := r.file(p, round)
	if _, err := os.Stat(name); err == nil {
		fmt.Println("  done before")
		return nil
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "round: %d\n", round)
	for _, run := range p.Runs {
		if run.Rounds != 0 && round > run.Rounds {
			continue
		}
		start := time.Now()
		raw, err := r.bench(ctx, run)
		if ctx.Err() != nil {
			return fmt.Errorf("stopped; the same command goes on with round %d of %s", round, p.Name)
		}
		lines := keep(raw)
		if err == nil && len(lines) == 0 {
			err = errors.New("it printed no result")
		}
		if err != nil {
			reason := failure(raw, err)
			fmt.Printf("  %s %s: %s\n", run.Dir, strings.Join(run.Bench, " "), reason)
			for _, b := range run.Bench {
				lines = append(lines, "missing: "+b+": failed: "+reason)
			}
		}
		fmt.Fprintf(&out, "pkg: %s\n%s\n", run.Dir, strings.Join(lines, "\n"))
		fmt.Printf("  %s %s: %s\n", run.Dir, strings.Join(run.Bench, " "), time.Since(start).Round(100*time.Millisecond))
	}
	if err := os.WriteFile(name+".part", out.Bytes(), 0o600); err != nil {
		return err
	}
	return os.Rename(name+".part", name)
}

// bench runs the benchmarks of one binary and returns what it printed.
func (r *runner) bench(ctx context.Context, run perf.Run) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, perRun)
	defer cancel()
	benchtime := run.Time
	if r.o.benchtime != "" {
		benchtime = r.o.benchtime
	}
	args := []string{"-test.run=^$", "-test.v", "-test.bench=^Benchmark(" + strings.Join(run.Bench, "|") + ")$", "-test.benchtime=" + benchtime}
	if run.OneCPU {
		args = append(args, "-test.cpu=1")
	}
	cmd := exec.CommandContext(ctx, r.bins[run.Dir], args...)
	cmd.Dir = filepath.Join(r.repo, run.Dir)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = os.Environ()
	if !run.Short {
		cmd.Env = append(cmd.Env, "TRUSTTREE_LONG=1")
	}
	cmd.Env = append(cmd.Env, "CI=") // a missing peer is skipped, and told
	if run.Volume {
		dir, remove, err := volume(ctx)
		if err != nil {
			return nil, err
		}
		defer remove()
		cmd.Env = append(cmd.Env, "TRUSTTREE_BENCH="+dir)
	}
	return cmd.CombinedOutput()
}

// volume mounts an ext4 file system in memory. Its blocks are written, so that
// no benchmark pays for memory that another has got already.
func volume(ctx context.Context) (dir string, remove func(), err error) {
	base, err := os.MkdirTemp("/dev/shm", "measure")
	if err != nil {
		return "", nil, err
	}
	remove = func() { _ = os.RemoveAll(base) }
	image, mnt := filepath.Join(base, "image"), filepath.Join(base, "mnt")
	if err = os.Mkdir(mnt, 0o700); err == nil {
		err = fill(image, 1<<30)
	}
	for _, args := range [][]string{
		{"mkfs.ext4", "-q", "-F", "-O", "encrypt", "-E", "nodiscard", image},
		{"mount", "-o", "loop", image, mnt},
	} {
		if err == nil {
			var out []byte
			if out, err = exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
				err = fmt.Errorf("an ext4 file system in memory (needs root): %s: %w: %s", args[0], err, bytes.TrimSpace(out))
			}
		}
	}
	if err != nil {
		remove()
		return "", nil, err
	}
	return mnt, func() {
		if out, err := exec.Command("umount", mnt).CombinedOutput(); err != nil {
			fmt.Printf("  umount: %s", out)
			return // nothing below a mount is removed
		}
		_ = os.RemoveAll(base)
	}, nil
}

func fill(name string, size int) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	zeros := make([]byte, 1<<20)
	for n := 0; n < size && err == nil; n += len(zeros) {
		_, err = f.Write(zeros)
	}
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

var (
	logged  = regexp.MustCompile(`^\s+\S+\.go:\d+: (.*)$`)
	skipped = regexp.MustCompile(`^\s*--- SKIP: Benchmark(\S+?)(-\d+)?$`)
)

// keep takes results and what was skipped, with the reason that it logged
// before, out of a benchmark's output.
func keep(raw []byte) (lines []string) {
	reason := ""
	for line := range strings.Lines(string(raw)) {
		line = strings.TrimRight(line, "\n")
		if m := logged.FindStringSubmatch(line); m != nil {
			reason = m[1]
		} else if m := skipped.FindStringSubmatch(line); m != nil {
			lines = append(lines, "missing: "+m[1]+": "+clean(strings.TrimPrefix(reason, "missing: ")))
		} else if f := strings.Fields(line); strings.HasPrefix(line, "Benchmark") && len(f) >= 4 {
			lines = append(lines, strings.Join(f, " "))
		}
	}
	return lines
}

// failure is the line that says why a benchmark failed.
func failure(raw []byte, err error) string {
	for _, word := range []string{"Error:", "panic:", ".go:"} {
		for line := range strings.Lines(string(raw)) {
			if strings.Contains(line, word) {
				return clean(line)
			}
		}
	}
	return clean(err.Error())
}

var absolute = regexp.MustCompile(`/[^\s:"'()|]+`)

// clean makes a reason fit into a table: one line of at most 200 bytes that
// names no directory of this machine.
func clean(reason string) string {
	reason = strings.Join(strings.Fields(strings.ReplaceAll(reason, "|", "/")), " ")
	reason = absolute.ReplaceAllStringFunc(reason, func(p string) string {
		for _, known := range []string{"/dev/", "/proc/", "/sys/", "/usr/"} {
			if strings.HasPrefix(p, known) && !strings.HasPrefix(p, "/dev/shm/") {
				return p
			}
		}
		if strings.Count(p, "/") < 2 {
			return p
		}
		return "…/" + filepath.Base(p)
	})
	if len(reason) > 200 {
		reason = strings.ToValidUTF8(reason[:200], "") + "…"
	}
	return reason
}

// collect puts a part's rounds together into its data file.
func (r *runner) collect(ctx context.Context, p perf.Part) error {
	var dirs []string
	for _, run := range p.Runs {
		dirs = append(dirs, run.Dir)
	}
	peers := strings.Trim(versions(ctx, p.Name)+", "+modules(ctx, r.repo, dirs), ", ")
	out := []byte(strings.Join(append(r.config, "peers: "+peers), "\n") + "\n")
	for round := 1; ; round++ {
		data, err := os.ReadFile(r.file(p, round))
		if err != nil {
			break
		}
		out = append(append(out, '\n'), data...)
	}
	if _, err := perf.Parse(bytes.NewReader(out)); err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	name := filepath.Join(r.repo, perf.DataDir, p.Name+".txt")
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, out, 0o644)
}
