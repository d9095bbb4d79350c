package parts

import (
	"fmt"
	"os"
	"path/filepath"

	"nomad-driver-nspawn/nspawn/paths"
)

// claim records that the machine writes to a directory that is not its own, by a symbolic
// link to it in one of the machine's directories. A directory can have only one writer.
func (m *Maker) claim(dir, link string) error {
	lock, err := m.locks.Lock("/") // the lock of all claims; no machine has this name
	if err != nil {
		return err
	}
	defer lock.Close()
	for _, name := range m.running() {
		for _, claimed := range m.claims(name) {
			if paths.Overlap(claimed, dir) {
				return &BusyError{Dir: dir, Holder: name}
			}
		}
	}
	if err := os.Symlink(dir, link); err != nil {
		return fmt.Errorf("claim directory %s: %w", dir, err)
	}
	return nil
}

// running returns the machines that were started since the host was booted, and not
// removed. The claims of other machines are void.
func (m *Maker) running() (machines []string) {
	dirs, _ := filepath.Glob(m.dirs.Machine("*")) // the pattern is well-formed
	for _, dir := range dirs {
		machines = append(machines, filepath.Base(dir))
	}
	return machines
}

// claims returns the directories that a machine has claimed: the image that it runs in
// place, and the upper layers of its overlays.
func (m *Maker) claims(name string) (dirs []string) {
	links, _ := filepath.Glob(m.dirs.OverlayRW(name, "*"))
	for _, link := range append(links, m.dirs.Claim(name)) {
		if dir, err := os.Readlink(link); err == nil {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// BusyError means that another machine already writes to the directory, or to one above or
// below it: it runs the directory in place, or uses it as the upper layer of an overlay.
type BusyError struct{ Dir, Holder string }

func (e *BusyError) Error() string {
	return fmt.Sprintf("directory %s is written to by machine %s: stop its task, or let this task write to a directory of its own "+
		"(ephemeral = true; an empty upper layer of overlay)", e.Dir, e.Holder)
}
