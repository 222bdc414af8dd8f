package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		case unix.ENOTTY, unix.EOPNOTSUPP:
			return fmt.Errorf("%w on the file system of %s: for ext4, run tune2fs -O encrypt on its device: %w", ErrUnsupported, f.Name(), errno)
		default:
			return errno
		}
	}
}

// AddKey gives the kernel a key for the file system that dir is on, and
// returns its identifier. Success proves nothing about any directory: compare
// the identifier with the directory's policy. It needs no privilege.
func AddKey(dir *os.File, key []byte) (id Identifier, err error) {
	if len(key) != KeySize {
		return id, fmt.Errorf("kernel: key of %d bytes, want %d", len(key), KeySize)
	}
	var arg struct {
		unix.FscryptAddKeyArg
		raw [KeySize]byte
	}
	defer clear(arg.raw[:])
	arg.Key_spec.Type = unix.FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER
	arg.Raw_size = KeySize
	copy(arg.raw[:], key)
	if err := ioctl(dir, unix.FS_IOC_ADD_ENCRYPTION_KEY, unsafe.Pointer(&arg)); err != nil {
		return id, fmt.Errorf("kernel: add key: %w", err)
	}
	copy(id[:], arg.Key_spec.U[:])
	want, err := KeyIdentifier(key)
	if err == nil && id != want {
		err = errors.New("kernel: the kernel calls the key otherwise than its documentation says")
	}
	return id, err
}

func spec(id Identifier) (s unix.FscryptKeySpecifier) {
	s.Type = unix.FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER
	copy(s.U[:], id[:])
	return s
}

// RemoveKey takes this user's claim to a key away and drops what is cached.
// A key that is not there is no error. Call it again, and ask Status, until
// the state is Absent.
func RemoveKey(dir *os.File, id Identifier) (Removal, error) {
	arg := unix.FscryptRemoveKeyArg{Key_spec: spec(id)}
	err := ioctl(dir, unix.FS_IOC_REMOVE_ENCRYPTION_KEY, unsafe.Pointer(&arg))
	if errors.Is(err, unix.ENOKEY) {
		return Removal{}, nil
	}
	if err != nil {
		return Removal{}, fmt.Errorf("kernel: remove key %v: %w", id, err)
	}
	return Removal{Busy: arg.Removal_status_flags&flagBusy != 0, OtherUsers: arg.Removal_status_flags&flagOtherUsers != 0}, nil
}

// Status says what the kernel holds of a key.
func Status(dir *os.File, id Identifier) (KeyState, error) {
	arg := unix.FscryptGetKeyStatusArg{Key_spec: spec(id)}
	if err := ioctl(dir, unix.FS_IOC_GET_ENCRYPTION_KEY_STATUS, unsafe.Pointer(&arg)); err != nil {
		return 0, fmt.Errorf("kernel: status of key %v: %w", id, err)
	}
	return KeyState(arg.Status), nil
}

// SetPolicy encrypts an empty directory. The kernel accepts modes that it
// can't run: write a file to find out. A directory that has this policy
// already is no error; one with another is ErrOtherPolicy.
func SetPolicy(dir *os.File, p Policy) error {
	arg := unix.FscryptPolicyV2{
		Version: unix.FSCRYPT_POLICY_V2, Contents_encryption_mode: uint8(p.Contents), Filenames_encryption_mode: uint8(p.Filenames),
		Flags: unix.FSCRYPT_POLICY_FLAGS_PAD_32, Master_key_identifier: p.Identifier,
	}
	err := ioctl(dir, unix.FS_IOC_SET_ENCRYPTION_POLICY, unsafe.Pointer(&arg))
	if errors.Is(err, unix.EINVAL) {
		err = fmt.Errorf("%w with %v and %v: %w", ErrUnsupported, p.Contents, p.Filenames, err)
	}
	if errors.Is(err, unix.EEXIST) {
		err = fmt.Errorf("%w: %w", ErrOtherPolicy, err)
	}
	if err != nil {
		return fmt.Errorf("kernel: encrypt %s: %w", dir.Name(), err)
	}
	return nil
}

// GetPolicy reads a directory's policy: ErrNoPolicy if it is not encrypted.
func GetPolicy(dir *os.File) (Policy, error) {
	arg := unix.FscryptGetPolicyExArg{Size: uint64(len(unix.FscryptGetPolicyExArg{}.Policy))}
	err := ioctl(dir, unix.FS_IOC_GET_ENCRYPTION_POLICY_EX, unsafe.Pointer(&arg))
	if errors.Is(err, unix.ENODATA) {
		return Policy{}, fmt.Errorf("%s: %w", dir.Name(), ErrNoPolicy)
	}
	if err != nil {
		return Policy{}, fmt.Errorf("kernel: policy of %s: %w", dir.Name(), err)
	}
	if arg.Policy[0] != unix.FSCRYPT_POLICY_V2 {
		return Policy{}, fmt.Errorf("%s has a policy of version %d: %w", dir.Name(), arg.Policy[0], ErrOtherPolicy)
	}
	p := Policy{Contents: Mode(arg.Policy[1]), Filenames: Mode(arg.Policy[2])}
	copy(p.Identifier[:], arg.Policy[8:])
	return p, nil
}

// Probe finds the best modes that this kernel and file system really run, by
// writing and reading a file under each in a directory of its own below dir:
// AES-256-XTS, with HCTR2 for names where there is it, which hides more of
// them than CTS, or Adiantum where the kernel has no better than portable C for
// AES. The key must have been added.
func Probe(dir *os.File, id Identifier) (Policy, error) {
	var errs []error
	var slow *Policy
	for _, p := range []Policy{{AES256XTS, AES256HCTR2, id}, {AES256XTS, AES256CTS, id}, {Adiantum, Adiantum, id}} {
		if slow != nil && p.Contents == AES256XTS {
			continue
		}
		err := try(dir, p)
		if err != nil {
			errs = append(errs, fmt.Errorf("%v with %v: %w", p.Contents, p.Filenames, err))
			continue
		}
		// The kernel says what it runs once it has run it.
		if p.Contents == AES256XTS && Generic("xts(aes)") {
			slow = &p
			continue
		}
		return p, nil
	}
	if slow != nil {
		return *slow, nil
	}
	return Policy{}, fmt.Errorf("%w: %w", ErrUnsupported, errors.Join(errs...))
}

func try(dir *os.File, p Policy) (err error) {
	root, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(int(dir.Fd())))
	if err != nil {
		return err
	}
	defer root.Close()
	const name = ".probe"
	if err := root.RemoveAll(name); err != nil {
		return err
	}
	if err := root.Mkdir(name, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.RemoveAll(name)) }()
	d, err := root.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := SetPolicy(d, p); err != nil {
		return err
	}
	want := bytes.Repeat([]byte("probe"), 2000)
	if err := root.WriteFile(name+"/file", want, 0o600); err != nil {
		return err
	}
	got, err := root.ReadFile(name + "/file")
	if err == nil && !bytes.Equal(got, want) {
		err = errors.New("kernel: the probe file reads back differently")
	}
	return err
}

// maxCrypto bounds what is read of /proc/crypto, in bytes.
const maxCrypto = 1 << 20

// Generic reports whether the kernel would run an algorithm, for example
// "xts(aes)", with nothing better than portable C, which is 10 to 100 times
// slower than a processor's instructions. It reports false where it can't
// tell, as before the kernel has used the algorithm.
func Generic(algorithm string) bool {
	b, err := os.ReadFile("/proc/crypto")
	if err != nil || len(b) > maxCrypto {
		return false
	}
	best, driver := -1, ""
	for block := range strings.SplitSeq(string(b), "\n\n") {
		f := map[string]string{}
		for line := range strings.SplitSeq(block, "\n") {
			if k, v, ok := strings.Cut(line, ":"); ok {
				f[strings.TrimSpace(k)] = strings.TrimSpace(v)
			}
		}
		n, err := strconv.Atoi(f["priority"])
		if f["name"] == algorithm && err == nil && n > best {
			best, driver = n, f["driver"]
		}
	}
	return strings.Contains(driver, "generic") || strings.Contains(driver, "-lib")
}

// Exchange swaps two names in a directory, in one step.
func Exchange(dir *os.File, a, b string) error {
	if err := unix.Renameat2(int(dir.Fd()), a, int(dir.Fd()), b, unix.RENAME_EXCHANGE); err != nil {
		return fmt.Errorf("kernel: exchange %s and %s: %w", a, b, err)
	}
	return nil
}

// Users lists files below dir that processes have open, as far as /proc shows
// them, at most limit.
func Users(dir string, limit int) []string {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	var users []string
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, p := range procs {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		fds := "/proc/" + p.Name() + "/fd"
		entries, err := os.ReadDir(fds)
		if err != nil {
			continue
		}
		links := []string{"/proc/" + p.Name() + "/cwd", "/proc/" + p.Name() + "/root"}
		for _, e := range entries {
			links = append(links, fds+"/"+e.Name())
		}
		for _, l := range links {
			target, err := os.Readlink(l)
			if err != nil || (target != dir && !strings.HasPrefix(target, dir+"/")) {
				continue
			}
			if users = append(users, "process "+p.Name()+": "+target); len(users) == limit {
				return users
			}
		}
	}
	return users
}

// SameDir reports whether a path still leads to an open directory.
func SameDir(path string, dir *os.File) bool {
	a, err := os.Stat(path)
	if err != nil {
		return false
	}
	b, err := dir.Stat()
	return err == nil && os.SameFile(a, b)
}

// Sync writes the file system of dir out, so that its pages can be dropped.
func Sync(dir *os.File) error { return unix.Syncfs(int(dir.Fd())) }
