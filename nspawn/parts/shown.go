package parts

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/paths"
)

// shown is a place in the machine that shows something of the host, or an overlay.
type shown struct {
	name        string // of its mount in the stage, for example binds/0
	destination string
	readOnly    bool
	bind        *machine.Bind
	overlay     *machine.Overlay
	memory      *machine.Memory
	// inside is the index of the place that this one lies in, or -1. The driver mounts the
	// inner one beforehand. Otherwise whoever can change the outer one, such as a task of
	// the same allocation, could decide where the mount lands.
	inside int
}

// shownBy returns the places of a machine, each after those that it may lie in.
func shownBy(s machine.Spec) []shown {
	var list []shown
	for i := range s.Binds {
		bind := &s.Binds[i]
		list = append(list, shown{name: filepath.Join("binds", strconv.Itoa(i)), destination: bind.Destination, readOnly: bind.ReadOnly, bind: bind})
	}
	for i := range s.Overlays {
		overlay := &s.Overlays[i]
		list = append(list, shown{
			name: filepath.Join("overlays", strconv.Itoa(i)), destination: overlay.Destination, readOnly: overlay.ReadOnly, overlay: overlay,
		})
	}
	for i := range s.Memories {
		memory := &s.Memories[i]
		list = append(list, shown{name: filepath.Join("memories", strconv.Itoa(i)), destination: memory.Destination, memory: memory})
	}
	slices.SortStableFunc(list, func(a, b shown) int { return strings.Compare(a.destination, b.destination) })
	for i := range list {
		list[i].inside = -1
		for j := range i {
			if below(list[j].destination, list[i].destination) {
				list[i].inside = j // a later one is the nearer one
			}
		}
	}
	return list
}

// below reports whether a path lies below another.
func below(dir, path string) bool { return path != dir && paths.Within(dir, path) }

// nspawnBinds returns the binds that nspawn makes, each with everything that lies inside.
func nspawnBinds(list []shown, path func(name string) string) (binds []machine.Bind) {
	for i, s := range list {
		if s.inside < 0 {
			binds = append(binds, machine.Bind{Source: path(s.name), Destination: s.destination, ReadOnly: readOnly(list, i)})
		}
	}
	return binds
}

// readOnly reports whether a place, and everything that lies inside, is read-only.
func readOnly(list []shown, i int) bool {
	if !list[i].readOnly {
		return false
	}
	for j := range list {
		if list[j].inside == i && !readOnly(list, j) {
			return false
		}
	}
	return true
}

// Check returns an error if a machine cannot be prepared, as far as its spec alone shows.
func Check(s machine.Spec) error { return errors.Join(s.Check(), checkDestinations(s)) }

// checkDestinations refuses mounts of nspawn's own in what a machine shows: others may
// change what is there, and so where such a mount lands.
func checkDestinations(s machine.Spec) error {
	refuse := func(option, path string) error {
		for _, shown := range shownBy(s) {
			if paths.Within(shown.destination, filepath.Clean(path)) {
				return fmt.Errorf("%s: %s lies in %s, which shows a directory of the host: choose another place", option, path, shown.destination)
			}
		}
		return nil
	}
	for _, mount := range s.Root.Tmpfs {
		if err := refuse("tmpfs", mount.Destination); err != nil {
			return err
		}
	}
	for _, device := range s.Devices {
		if err := refuse("devices", device.Destination); err != nil {
			return err
		}
	}
	for _, path := range s.Root.Inaccessible {
		if err := refuse("inaccessible", path); err != nil {
			return err
		}
	}
	return nil
}
