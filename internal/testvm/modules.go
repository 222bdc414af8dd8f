package testvm

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// modules returns drivers for an initramfs, with those that they depend on: by
// path, whose order is the one to load them in. A driver that has no file is
// built into the kernel.
func (k *kernel) modules(names ...string) (map[string][]byte, error) {
	files := map[string]string{}
	err := filepath.WalkDir(filepath.Join(k.root, "lib", "modules"), func(name string, _ fs.DirEntry, err error) error {
		if base, ok := strings.CutSuffix(filepath.Base(name), ".ko"); ok {
			files[strings.ReplaceAll(base, "-", "_")] = name
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	out, seen := map[string][]byte{}, map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		name = strings.ReplaceAll(name, "-", "_")
		file := files[name]
		if file == "" || seen[name] {
			return nil
		}
		seen[name] = true
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		needs, err := dependsOn(data)
		if err != nil {
			return fmt.Errorf("testvm: %s: %w", file, err)
		}
		for _, n := range needs {
			if err := add(n); err != nil {
				return err
			}
		}
		out[fmt.Sprintf("modules/%03d-%s.ko", len(out), name)] = data
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// dependsOn reads what a module says that it needs.
func dependsOn(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if v, ok := bytes.CutPrefix(field, []byte("depends=")); ok && len(v) > 0 {
			return strings.Split(string(v), ","), nil
		}
	}
	return nil, nil
}
