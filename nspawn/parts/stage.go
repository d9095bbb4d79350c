package parts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/mounts"
	"nomad-driver-nspawn/nspawn/programs"
	"nomad-driver-nspawn/nspawn/stage"
)

// NewStage makes the mount namespace that nspawn will run in. It does not belong to a
// machine yet.
func (m *Maker) NewStage() (*stage.Stage, error) {
	// The mount point is on the host, below a mount that is read-only in the stage.
	if err := os.MkdirAll("/run/systemd/nspawn", 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of systemd-nspawn: %w", err)
	}
	if err := stage.PrepareDir(m.dirs.Pins()); err != nil {
		return nil, err
	}
	return stage.New(m.dirs.Pins())
}

// makeStage assigns the stage to the machine.
func (m *Maker) makeStage(_ context.Context, d *draft) error {
	name := d.spec.Machine
	if err := d.stage.Pin(m.dirs.Machine(name), m.dirs.Pin(name)); err != nil {
		return err
	}
	shim, err := m.shimFor(d)
	if err != nil {
		return err
	}
	ours := []struct{ path, mount string }{{shim, shimMount}, {m.dirs.Gate(name), gateMount}}
	for _, file := range d.names.Files() {
		path := m.dirs.Named(name, file.Path)
		ours = append(ours, struct{ path, mount string }{path, filepath.Join(namesMount, filepath.Base(path))})
	}
	trees := make([]*os.File, len(ours))
	for i, one := range ours {
		if trees[i], err = copyOf(one.path); err != nil {
			return err
		}
		defer trees[i].Close()
	}
	return d.stage.Do(func() error {
		var errs []error
		for i, one := range ours {
			errs = append(errs, place(trees[i], m.dirs.Mounted(name, one.mount)))
		}
		return errors.Join(errs...)
	})
}

// shimFor returns the program that the machine begins with. Root of a machine without a
// user namespace can write to the program, even if its mount is read-only. So such a
// machine has a copy of the host's program.
func (m *Maker) shimFor(d *draft) (string, error) {
	if d.spec.Root.UserNamespace {
		return d.programs.Own, nil
	}
	program, err := os.ReadFile(d.programs.Own)
	if err != nil {
		return "", fmt.Errorf("copy the program that machines begin with: %w", err)
	}
	path := m.dirs.Shim(d.spec.Machine)
	if err := programs.Write(path, program); err != nil {
		return "", fmt.Errorf("copy the program that machines begin with: %w", err)
	}
	return path, nil
}

// The mounts of the shim, of the gate (package gate), and of the files for name
// resolution.
const (
	shimMount  = "shim"
	gateMount  = "gate"
	namesMount = "names"
)

// copyOf returns a path of the driver as a detached mount.
func copyOf(path string) (*os.File, error) {
	file, err := mounts.Open(path, "")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return mounts.Copy(file)
}

// place mounts a detached tree where nspawn expects it, in the stage that this thread is
// in.
func place(tree *os.File, path string) error {
	info, err := tree.Stat()
	if err != nil {
		return err
	}
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
}

// makeSeal comes last: after it, nothing can be mounted any more.
func (m *Maker) makeSeal(_ context.Context, d *draft) error { return d.stage.Seal() }

func (m *Maker) removeStage(_ context.Context, machine string) error {
	return stage.Unpin(m.dirs.Pin(machine))
}

func (m *Maker) stageOwners() (machines []string, err error) {
	names, err := namesOf(m.dirs.Pin("*"))
	for _, name := range names {
		machines = append(machines, strings.TrimSuffix(name, dirs.PinSuffix))
	}
	return machines, err
}
