package update

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/trusttree/trusttree/internal/durable"
	"github.com/trusttree/trusttree/update/internal/lint"
)

// Floors are the versions below which nothing is accepted any more. They rise
// when a release is committed and at no other time. The zero value is the
// floor of a node that has committed nothing.
type Floors struct {
	// Images and Director hold the floors of the two repositories.
	Images   RepositoryFloors `json:"images"`
	Director RepositoryFloors `json:"director"`
	// Security is the security counter of the committed release.
	Security uint64 `json:"security"`
	// Data is the data floor of the committed release.
	Data uint64 `json:"data"`
	// Time is the signed time of publication of the committed release: the
	// clock is never taken to be earlier.
	Time time.Time `json:"time"`
}

// RepositoryFloors are the floors of one repository's metadata versions.
type RepositoryFloors struct {
	Root      int64 `json:"root"`
	Timestamp int64 `json:"timestamp"`
	Snapshot  int64 `json:"snapshot"`
	Targets   int64 `json:"targets"`
	// Keys names the keys of each role to which the floors belong. After a
	// root replaced a role's keys, the old keys' version numbers bind nobody:
	// so a repository recovers from a fast-forward attack.
	Keys map[string]string `json:"keys,omitempty"`
}

// raised returns the higher of both in every field.
func (f Floors) raised(to Floors) Floors {
	f.Images, f.Director = f.Images.raised(to.Images), f.Director.raised(to.Director)
	f.Security, f.Data = max(f.Security, to.Security), max(f.Data, to.Data)
	if to.Time.After(f.Time) {
		f.Time = to.Time
	}
	return f
}

func (f RepositoryFloors) raised(to RepositoryFloors) RepositoryFloors {
	if to.Root == 0 || to.Root < f.Root {
		return f
	}
	up := func(role string, old, now int64) int64 {
		if f.Keys[role] == to.Keys[role] {
			return max(old, now)
		}
		return now
	}
	return RepositoryFloors{
		Root: to.Root, Keys: to.Keys,
		Timestamp: up("timestamp", f.Timestamp, to.Timestamp),
		Snapshot:  up("snapshot", f.Snapshot, to.Snapshot),
		Targets:   up("targets", f.Targets, to.Targets),
	}
}

// FloorStore keeps the floors. Implementations are safe for concurrent use.
type FloorStore interface {
	// Load returns the floors. ErrStateRolledBack says that what is stored
	// is not what was stored last; nothing is installed then.
	Load(ctx context.Context) (Floors, error)
	// Raise stores the higher of the stored and the given floors, durably.
	Raise(ctx context.Context, to Floors) error
	// Kind says what guards the floors, for status and reports: "software",
	// "tpm".
	Kind() string
}

// Floors as stored: strict JSON with a checksum, in two copies.
type floorsFile struct {
	Version int    `json:"version"`
	Counter uint64 `json:"counter"`
	Floors  Floors `json:"floors"`
	MAC     []byte `json:"mac,omitempty"`
	CRC     uint32 `json:"crc32"`
}

const maxFloorsFile = 16 << 10

func (f floorsFile) body() []byte {
	f.CRC, f.MAC = 0, nil
	data, err := json.Marshal(f)
	if err != nil {
		return nil // no field of the struct can fail to encode
	}
	return data
}

func (f floorsFile) write(name string) error {
	f.Version = 1
	f.CRC = crc32.ChecksumIEEE(f.body())
	data, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return durable.WriteFile(name, data, 0o600)
}

// readFloors reads one copy; nil without an error means that there is none.
func readFloors(name string) (*floorsFile, error) {
	data, err := readFileLimit(name, maxFloorsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var f floorsFile
	if err := lint.Strict(data, maxFloorsFile, &f); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if f.Version != 1 || f.CRC != crc32.ChecksumIEEE(f.body()) {
		return nil, fmt.Errorf("%s: version %d or checksum is wrong", name, f.Version)
	}
	return &f, nil
}

func readFileLimit(name string, limit int64) ([]byte, error) {
	f, err := openRegular(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s: more than %d bytes", name, limit)
	}
	return data, err
}

// openRegular opens a regular file. Opening anything else might wait for ever.
func openRegular(name string) (*os.File, error) {
	fi, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	return os.Open(name)
}

// FileFloors keeps the floors in two files in dir. Whoever can write there, or
// put an older disk image back, lowers them: use TPMFloors where there is a
// TPM.
func FileFloors(dir string) FloorStore { return &fileFloors{dir: dir} }

type fileFloors struct {
	dir string
	mu  sync.Mutex
}

func floorNames(dir string) [2]string {
	return [2]string{filepath.Join(dir, "floors-0.state"), filepath.Join(dir, "floors-1.state")}
}

func (s *fileFloors) Kind() string { return "software" }

func (s *fileFloors) Load(ctx context.Context) (Floors, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := s.load(ctx)
	return f.Floors, err
}

func (s *fileFloors) load(ctx context.Context) (best floorsFile, err error) {
	if err := ctx.Err(); err != nil {
		return best, err
	}
	found, broken := false, error(nil)
	for _, name := range floorNames(s.dir) {
		f, err := readFloors(name)
		if err != nil {
			broken = err
		} else if f != nil && (!found || f.Counter > best.Counter) {
			best, found = *f, true
		}
	}
	if !found && broken != nil {
		return best, refuseErr(ErrStateRolledBack, "floors", broken)
	}
	return best, nil
}

func (s *fileFloors) Raise(ctx context.Context, to Floors) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := s.load(ctx)
	if err != nil {
		return err
	}
	if err := durable.MkdirAll(s.dir, 0o700); err != nil {
		return stateError("floors", err)
	}
	f.Floors, f.Counter = f.Floors.raised(to), f.Counter+1
	for _, name := range floorNames(s.dir) {
		if err := f.write(name); err != nil {
			return stateError("floors", err)
		}
	}
	return nil
}
