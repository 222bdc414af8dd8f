package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/trusttree/trusttree/internal/testvm/vminit"
)

// errReboot: the daemon asked for a reboot.
var errReboot = errors.New("reboot")

// exitReboot is the daemon's exit code for it.
const exitReboot = 10

// supervisor runs the daemon and reads along.
type supervisor struct {
	log *slog.Logger
	out io.Writer
}

func (s *supervisor) run() error {
	cmd := exec.Command("/node", "run", "-config", filepath.Join(state, "node.json"))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(stderr)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		// One write for each line: those of the logger go to the same port.
		if _, err := s.out.Write(append(lines.Bytes(), '\n')); err != nil {
			return err
		}
		var record struct{ Event, Link string }
		if json.Unmarshal(lines.Bytes(), &record) != nil {
			continue
		}
		if volume, ok := strings.CutSuffix(record.Link, " volume"); ok {
			s.diary(volume, record.Event)
		}
	}
	err = errors.Join(lines.Err(), cmd.Wait())
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == exitReboot {
		return errReboot
	}
	return fmt.Errorf("the daemon ended: %w", err)
}

// diary says what a program that is not the node finds in a volume.
func (s *supervisor) diary(volume, event string) {
	dir := filepath.Join(state, volume, "tree")
	name := filepath.Join(dir, "diary.txt")
	found, err := os.ReadFile(name)
	switch event {
	case "link.proven":
		if errors.Is(err, os.ErrNotExist) {
			err = write(name, vminit.Diary)
		}
		s.log.Info("diary", "event", "vm.diary", "volume", volume, "found", string(found), "error", fmt.Sprint(err))
	case "link.lost":
		if err == nil {
			s.log.Error("the volume is open", "event", "vm.exposed", "volume", volume)
			return
		}
		// Listing shows names that the kernel makes up of the encrypted ones;
		// making a file needs the key.
		var names []string
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		noKey := write(filepath.Join(dir, "new"), "x")
		s.log.Info("closed", "event", "vm.closed", "volume", volume, "names", strings.Join(names, " "), "read", err.Error(), "write", fmt.Sprint(noKey), "enokey", fmt.Sprint(errors.Is(noKey, unix.ENOKEY)))
	}
}

func write(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Sync(), f.Close())
}
