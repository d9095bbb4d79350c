package nspawn

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"nomad-driver-nspawn/nspawn/filelock"
	"nomad-driver-nspawn/nspawn/mounts"
	"nomad-driver-nspawn/nspawn/stage"
)

// makeStage makes the mount namespace that nspawn will run in.
func (m *Manager) makeStage(_ context.Context, d *draft) (err error) {
	// The mount point is on the host, below a mount that is read-only in the stage.
	if err := os.MkdirAll("/run/systemd/nspawn", 0o755); err != nil {
		return fmt.Errorf("make the directory of systemd-nspawn: %w", err)
	}
	if err := m.preparePins(); err != nil {
		return err
	}
	if d.stage, err = stage.New(m.dirs.machine(d.spec.Machine), m.dirs.pin(d.spec.Machine)); err != nil {
		return err
	}
	shim, err := m.shimFor(d)
	if err != nil {
		return err
	}
	if err := d.placeCopy(shim, m.dirs.mounted(d.spec.Machine, shimMount)); err != nil {
		return err
	}
	for _, file := range d.names.Files() {
		path := m.dirs.named(d.spec.Machine, file.Path)
		if err := d.placeCopy(path, m.dirs.mounted(d.spec.Machine, filepath.Join(namesMount, filepath.Base(path)))); err != nil {
			return err
		}
	}
	return d.placeCopy(m.dirs.gate(d.spec.Machine), m.dirs.mounted(d.spec.Machine, gateMount))
}

// shimFor returns the program that the machine begins with. The root of a machine
// without a user namespace can write to it, whatever its mount says: such a machine has
// a copy of what the host runs.
func (m *Manager) shimFor(d *draft) (string, error) {
	if d.spec.Root.UserNamespace {
		return d.tool.program, nil
	}
	program, err := os.ReadFile(d.tool.program)
	if err != nil {
		return "", fmt.Errorf("copy the program that machines begin with: %w", err)
	}
	path := m.dirs.shim(d.spec.Machine)
	if err := os.WriteFile(path, program, 0o755); err != nil {
		return "", fmt.Errorf("copy the program that machines begin with: %w", err)
	}
	return path, nil
}

// Where the shim and the gate are mounted, see package gate, and the files of names.
const (
	shimMount  = "shim"
	gateMount  = "gate"
	namesMount = "names"
)

// placeCopy mounts in the stage what is at a path of ours.
func (d *draft) placeCopy(from, path string) error {
	file, err := mounts.Open(from, "")
	if err != nil {
		return err
	}
	defer file.Close()
	tree, err := mounts.Copy(file)
	if err != nil {
		return err
	}
	defer tree.Close()
	return d.place(tree, path)
}

// place mounts a detached tree in the stage, where nspawn finds it.
func (d *draft) place(tree *os.File, path string) error {
	info, err := tree.Stat()
	if err != nil {
		return err
	}
	return d.stage.Do(func() error {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if info.IsDir() {
			err = os.Mkdir(path, 0o755)
		} else {
			err = os.WriteFile(path, nil, 0o644)
		}
		if err != nil {
			return err
		}
		at, err := mounts.Open(path, "")
		if err != nil {
			return err
		}
		defer at.Close()
		return mounts.Attach(tree, at)
	})
}

// makeSeal comes last: nothing can be mounted any more.
func (m *Manager) makeSeal(_ context.Context, d *draft) error { return d.stage.Seal() }

// preparePins makes the directory of pins, once in the host's life.
func (m *Manager) preparePins() error {
	err := filelock.While(m.dirs.Run, 0o755, func() error { return stage.PrepareDir(m.dirs.pins()) })
	if err != nil {
		return fmt.Errorf("make a place for mount namespaces: %w", err)
	}
	return nil
}

func (m *Manager) removeStage(_ context.Context, machine string) error {
	return stage.Unpin(m.dirs.pin(machine))
}

func (m *Manager) stageOwners() (machines []string, err error) {
	names, err := namesOf(m.dirs.pin("*"))
	for _, name := range names {
		machines = append(machines, strings.TrimSuffix(name, pinSuffix))
	}
	return machines, err
}
