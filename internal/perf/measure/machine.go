package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"
)

// machine describes what is measured on, in lines "key: value".
func machine(ctx context.Context, repo string) (config []string, commit string) {
	commit = output(ctx, repo, "git", "rev-parse", "--short=12", "HEAD")
	if output(ctx, repo, "git", "status", "--porcelain", "--", ":!docs") != "" {
		commit += " and changes"
	}
	cpu := field("/proc/cpuinfo", "model name")
	if cpu == "" {
		cpu = runtime.GOARCH
	}
	if strings.Contains(field("/proc/cpuinfo", "flags"), "hypervisor") {
		cpu += " (virtual machine)"
	}
	var kb float64
	_, _ = fmt.Sscan(field("/proc/meminfo", "MemTotal"), &kb)
	return []string{
		"goos: " + runtime.GOOS, "goarch: " + runtime.GOARCH, "go: " + runtime.Version(),
		"cpu: " + cpu, fmt.Sprintf("cores: %d", runtime.NumCPU()), fmt.Sprintf("memory: %.0f GiB", kb/(1<<20)),
		"kernel: " + strings.TrimSpace("Linux "+read("/proc/sys/kernel/osrelease")), "disk: " + disk(os.TempDir()),
		"commit: " + commit, "date: " + time.Now().UTC().Format("2006-01-02 15:04 UTC"),
		"load: " + strings.Fields(read("/proc/loadavg") + " ?")[0],
	}, commit
}

// disk says which file system and kind of device a directory is on.
func disk(dir string) string {
	data, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "unknown"
	}
	defer data.Close()
	best, kind := "", "unknown"
	for s := bufio.NewScanner(data); s.Scan(); {
		f := strings.Fields(s.Text())
		left, right := f, []string{}
		for i, w := range f {
			if w == "-" {
				left, right = f[:i], f[i+1:]
			}
		}
		if len(left) < 5 || len(right) < 2 || len(left[4]) < len(best) {
			continue
		}
		if rel, err := filepath.Rel(left[4], dir); err != nil || strings.HasPrefix(rel, "..") {
			continue
		}
		best, kind = left[4], right[0]+" on "+device(right[1])
	}
	return kind
}

func device(name string) string {
	base := filepath.Base(name)
	switch spinning := read("/sys/block/" + base + "/queue/rotational"); {
	case !strings.HasPrefix(name, "/dev/"):
		return "memory or network"
	case strings.HasPrefix(base, "vd"):
		return "a virtual disk"
	case strings.HasPrefix(base, "nvme"):
		return "NVMe"
	case spinning == "1":
		return "a spinning disk"
	case spinning == "0":
		return "an SSD"
	}
	return "a partition"
}

// versions tells which peers' programs are there, for the parts that use them.
func versions(ctx context.Context, part string) string {
	ask := map[string][][]string{
		"updates": {{"rauc", "--version"}},
		"tunnels": {{"stunnel", "-version"}, {"haproxy", "-v"}, {"ghostunnel", "--version"}},
		"volumes": {{"gocryptfs", "-version"}},
		"stores":  {{"postgres", "--version"}},
		"softtpm": {{"swtpm", "--version"}},
	}
	var out []string
	number := regexp.MustCompile(`[0-9]+(\.[0-9]+)+`)
	for _, args := range ask[part] {
		text, _ := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
		if v := number.FindString(string(text)); v != "" {
			out = append(out, args[0]+" "+v)
		}
	}
	return strings.Join(out, ", ")
}

// modules tells which modules' benchmarks a part has, with versions.
func modules(ctx context.Context, repo string, dirs []string) string {
	peers := []string{"github.com/google/go-attestation", "github.com/google/go-eventlog", "github.com/google/go-tpm-tools",
		"github.com/theupdateframework/go-tuf/v2", "filippo.io/age", "github.com/ncruces/go-sqlite3", "github.com/jackc/pgx/v5"}
	found := map[string]bool{}
	var out []string
	for _, dir := range dirs {
		used := output(ctx, filepath.Join(repo, dir), "go", "list", "-deps", "-test", "-f", "{{with .Module}}{{.Path}} {{.Version}}{{end}}", ".")
		for line := range strings.Lines(used) {
			path, version, _ := strings.Cut(strings.TrimSpace(line), " ")
			for _, p := range peers {
				if p == path && !found[p] {
					found[p] = true
					name := filepath.Base(strings.TrimSuffix(strings.TrimSuffix(p, "/v2"), "/v5"))
					out = append(out, name+" "+version)
				}
			}
		}
	}
	return strings.Join(out, ", ")
}

func output(ctx context.Context, dir string, args ...string) string {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

func read(file string) string {
	data, _ := os.ReadFile(file)
	return strings.TrimSpace(string(data))
}

// field returns the first value of a key in a file of lines "key : value".
func field(file, key string) string {
	for line := range strings.Lines(read(file)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
