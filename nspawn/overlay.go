package nspawn

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/rootfs"
	"nomad-driver-nspawn/nspawn/tree"
)

// overlay is where an overlay of a machine is mounted on the host.
func (d Dirs) overlay(machine, index string) string {
	return filepath.Join(d.machine(machine), "overlays", index)
}

// overlayRW has what an overlay of a machine writes, or is a symbolic link to its
// upper layer.
func (d Dirs) overlayRW(machine, index string) string {
	return filepath.Join(d.writable(machine), "overlays", index)
}

// overlayWork is the name of the directory that overlayfs works in, beside an
// upper layer.
func overlayWork(machine, index string) string { return ".nomad-nspawn-" + machine + "-" + index }

// allBinds are all that the machine gets, with those that show it its overlays.
func allBinds(s Spec, d Dirs) []Bind {
	binds := slices.Clone(s.Binds)
	for i, overlay := range s.Overlays {
		binds = append(binds, Bind{
			Source: d.overlay(s.Machine, strconv.Itoa(i)), Destination: overlay.Destination,
			ReadOnly: overlay.ReadOnly, Unmapped: true, // its layers are mapped
		})
	}
	return binds
}

// makeOverlayTargets makes the directories that the overlays will be mounted at.
func (m *Manager) makeOverlayTargets(s Spec) error {
	for i, overlay := range s.Overlays {
		if err := os.MkdirAll(m.dirs.overlay(s.Machine, strconv.Itoa(i)), 0o755); err != nil {
			return fmt.Errorf("make mount point of overlay %s: %w", overlay.Destination, err)
		}
	}
	return nil
}

// mountOverlays comes when nothing is written to the root any more: directories
// of it may be layers, which must not change.
func (m *Manager) mountOverlays(s Spec) error {
	for i, overlay := range s.Overlays {
		if err := m.mountOverlay(s, overlay, strconv.Itoa(i)); err != nil {
			return fmt.Errorf("overlay %s: %w", overlay.Destination, err)
		}
	}
	return nil
}

func (m *Manager) mountOverlay(s Spec, overlay Overlay, index string) error {
	merged := rootfs.Overlay{
		Root:    m.dirs.root(s.Machine),
		Target:  m.dirs.overlay(s.Machine, index),
		UIDBase: s.Root.UIDBase,
	}
	for _, layer := range slices.Backward(overlay.Lower) {
		dir := layer.Path
		if layer.InRoot {
			var err error
			if dir, err = findInRoot(m.dirs.rootOf(s), layer.Path); err != nil {
				return err
			}
		}
		merged.Lower = append(merged.Lower, dir)
	}
	rw := m.dirs.overlayRW(s.Machine, index)
	switch {
	case overlay.ReadOnly:
	case overlay.Upper == "":
		merged.RW = rw
	default:
		if err := os.MkdirAll(filepath.Dir(rw), 0o700); err != nil {
			return err
		}
		if err := m.claim(overlay.Upper, rw); err != nil {
			return err
		}
		merged.Upper, merged.Work = overlay.Upper, overlayWork(s.Machine, index)
	}
	return merged.Mount()
}

// findInRoot is where a directory of the machine's root is on the host. Symbolic
// links lead to where they do in the machine.
func findInRoot(root, name string) (string, error) {
	top, err := os.Open(root)
	if err != nil {
		return "", fmt.Errorf("open the root of the machine: %w", err)
	}
	defer top.Close()
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT}
	dir, err := unix.Openat2(int(top.Fd()), name, &how)
	if err != nil {
		return "", fmt.Errorf("find %s in the image: %w", name, err)
	}
	defer unix.Close(dir)
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir))
}

// removeOverlays unmounts the machine's overlays, and releases their upper layers.
func (m *Manager) removeOverlays(machine string) error {
	if err := unmountAll(m.dirs.overlay(machine, "*")); err != nil {
		return err
	}
	links, _ := filepath.Glob(m.dirs.overlayRW(machine, "*"))
	for _, link := range links {
		upper, err := os.Readlink(link)
		if err != nil {
			continue // it was only this machine's
		}
		if err := tree.Remove(filepath.Join(filepath.Dir(upper), overlayWork(machine, filepath.Base(link)))); err != nil {
			return err
		}
		if err := os.Remove(link); err != nil {
			return fmt.Errorf("release upper layer %s: %w", upper, err)
		}
	}
	return nil
}
