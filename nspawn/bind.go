package nspawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/mounts"
	"nomad-driver-nspawn/nspawn/rootfs"
)

// bind is where a bind of a machine is mounted on the host, ID-mapped.
func (d Dirs) bind(machine, index string) string {
	return filepath.Join(d.machine(machine), "binds", index)
}

// mapBinds ID-maps the plain binds, and finds out which others cannot be. What it
// mounts is there until nspawn has set the machine up: it would be in the list of the
// host's disks (nomad node status -stats), and holds files. A booted system needs it
// again when it reboots.
func (m *Manager) mapBinds(ctx context.Context, s *Spec) error {
	s.Binds = slices.Clone(s.Binds)
	var mapped []idmap.Bind
	var errs []error
	for i := range s.Binds {
		bind := &s.Binds[i]
		err := idmap.Mappable(bind.Source)
		switch {
		case err == nil && bind.Plain && s.Mode != Boot:
			target := m.dirs.bind(s.Machine, strconv.Itoa(i))
			errs = append(errs, os.MkdirAll(target, 0o700))
			mapped = append(mapped, idmap.Bind{Source: bind.Source, Target: target})
			bind.Source, bind.Unmapped = target, true
		case err == nil:
		case bind.Owned:
			bind.Unmapped = true
			errs = append(errs, rootfs.HandOver(ctx, bind.Source, s.Root.UIDBase))
		default:
			errs = append(errs, fmt.Errorf("bind %s to %s with a user namespace: %w", bind.Source, bind.Destination, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return idmap.MountBinds(s.Root.UIDBase, mapped)
}

// makePoints makes the mount points of binds that lie in a plain one, as a volume in
// the task's directory. systemd-nspawn makes them as host root, which by the map of
// the directory cannot make files, or makes nobody's.
func (m *Manager) makePoints(s Spec) error {
	for _, plain := range s.Binds {
		if !plain.Plain {
			continue
		}
		for _, bind := range allBinds(s, m.dirs) {
			name, below := strings.CutPrefix(bind.Destination, plain.Destination+"/")
			if !below {
				continue
			}
			tree, err := os.OpenRoot(plain.Source)
			if err == nil {
				err = makeMountPoint(tree, Bind{Source: bind.Source, Destination: name}, 0)
				tree.Close()
			}
			if err != nil {
				return fmt.Errorf("make the mount point %s of the machine: %w", bind.Destination, err)
			}
		}
	}
	return nil
}

// removeBinds unmounts the plain binds.
func (m *Manager) removeBinds(machine string) error {
	return unmountAll(m.dirs.bind(machine, "*"))
}

// unmountAll unmounts what is mounted at the paths of a well-formed pattern.
func unmountAll(pattern string) error {
	targets, _ := filepath.Glob(pattern)
	for _, target := range targets {
		if err := mounts.Unmount(target); err != nil {
			return err
		}
	}
	return nil
}
