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

// populateRoot writes the spec's files and the mount points of what the machine shows into
// the root. The image decides what is at their paths, so populateRoot never leaves the
// root.
func populateRoot(dir string, s machine.Spec, owner int) error {
	tree, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open the root of the machine: %w", err)
	}
	defer tree.Close()
	// nspawn refuses a tree without /usr, and an image of one static program has none.
	// Package places creates the other directories that nspawn needs.
	for _, name := range slices.Concat([]string{"/usr"}, s.Root.Directories) {
		if _, err := tree.Lstat(strings.TrimPrefix(name, "/")); err == nil {
			continue // nspawn checks what it is
		}
		if err := makeDir(tree, strings.TrimPrefix(filepath.Clean(name), "/"), owner); err != nil {
			return fmt.Errorf("make %s of the machine: %w", name, err)
		}
	}
	for _, file := range s.Names.Files() { // mount points, which replace what the image has there
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

// makeMountPoint creates a mount point in the root. nspawn cannot create any in a
// read-only root, and nspawn 252 leaves those that it creates to nobody. If a link of the
// image leads to an absolute path, the mount point is left to nspawn.
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

// makeDir creates a directory of the machine's root and its missing parents.
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
	// This is often a symbolic link into a directory that is empty before the boot.
	if err := ignoreNotExist(tree.Remove(name)); err != nil {
		return err
	}
	if err := tree.WriteFile(name, []byte(file.Content), 0o644); err != nil {
		return err
	}
	return tree.Lchown(name, owner, owner)
}
