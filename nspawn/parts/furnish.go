package parts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"nomad-driver-nspawn/nspawn/machine"
)

// furnish puts the spec's files and the mount points of what it shows into the
// root. The image decides what is at their paths, so they are reached without
// ever leaving the root.
func furnish(dir string, s machine.Spec, owner int) error {
	tree, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open the root of the machine: %w", err)
	}
	defer tree.Close()
	// nspawn runs no tree without /usr; an image of one static program has none. Package
	// places sees to the others.
	for _, name := range slices.Concat([]string{"/usr"}, s.Root.Directories) {
		if _, err := tree.Lstat(strings.TrimPrefix(name, "/")); err == nil {
			continue // whatever it is, nspawn judges it
		}
		if err := makeDir(tree, strings.TrimPrefix(filepath.Clean(name), "/"), owner); err != nil {
			return fmt.Errorf("make %s of the machine: %w", name, err)
		}
	}
	for _, file := range s.Names.Files() { // mount points, whatever the image has there
		if err := writeFile(tree, machine.File{Path: file.Path}, owner); err != nil {
			return fmt.Errorf("make %s of the machine: %w", file.Path, err)
		}
	}
	for _, file := range s.Root.Files {
		if err := writeFile(tree, file, owner); err != nil {
			return fmt.Errorf("write %s of the machine: %w", file.Path, err)
		}
	}
	return nil
}

// makeMountPoint is for a read-only root, in which nspawn can make none, and
// for nspawn 252, which leaves those that it makes to nobody. Where a link of
// the image leads to an absolute path, it is left to nspawn after all.
func makeMountPoint(tree *os.Root, destination string, isDir bool, owner int) error {
	name := strings.TrimPrefix(filepath.Clean(destination), "/")
	if _, err := tree.Stat(name); !errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if isDir {
		return makeDir(tree, name, owner)
	}
	if err := makeDir(tree, filepath.Dir(name), owner); err != nil {
		return err
	}
	return writeFile(tree, machine.File{Path: destination}, owner)
}

// makeDir makes a directory and those above it, of the machine's root.
func makeDir(tree *os.Root, name string, owner int) error {
	if _, err := tree.Stat(name); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := makeDir(tree, filepath.Dir(name), owner); err != nil {
		return err
	}
	if err := tree.Mkdir(name, 0o755); err != nil {
		return err
	}
	return tree.Chown(name, owner, owner)
}

func writeFile(tree *os.Root, file machine.File, owner int) error {
	name := strings.TrimPrefix(filepath.Clean(file.Path), "/")
	if _, err := tree.Lstat(name); file.Keep && err == nil {
		return nil
	}
	if err := makeDir(tree, filepath.Dir(name), owner); err != nil {
		return err
	}
	// Often a symbolic link into a directory that is empty before the boot.
	if err := ignoreNotExist(tree.Remove(name)); err != nil {
		return err
	}
	if err := tree.WriteFile(name, []byte(file.Content), 0o644); err != nil {
		return err
	}
	return tree.Lchown(name, owner, owner)
}
