package parts

import (
	"fmt"
	"os"
	"path/filepath"

	"nomad-driver-nspawn/nspawn/paths"
)

// claim records, by a symbolic link to it in one of the machine's directories,
// that the machine writes to a directory that is not its own. Only one may.
func (m *Maker) claim(dir, link string) error {
	lock, err := m.locks.Lock("/") // of all claims: no machine is named so
	if err != nil {
		return err
	}
	defer lock.Close()
	for _, machine := range m.running() {
		for _, claimed := range m.claims(machine) {
			if paths.Overlap(claimed, dir) {
				return &BusyError{Dir: dir, Holder: machine}
			}
		}
	}
	if err := os.Symlink(dir, link); err != nil {
		return fmt.Errorf("claim directory %s: %w", dir, err)
	}
	return nil
}

// running are the machines that have been started since the host was booted, and
// not removed. What others have claimed is void.
func (m *Maker) running() (machines []string) {
	dirs, _ := filepath.Glob(m.dirs.Machine("*")) // the pattern is well-formed
	for _, dir := range dirs {
		machines = append(machines, filepath.Base(dir))
	}
	return machines
}

// claims are the directories that a machine has claimed: the image that it runs
// in place, and upper layers of its overlays.
func (m *Maker) claims(machine string) (dirs []string) {
	links, _ := filepath.Glob(m.dirs.OverlayRW(machine, "*"))
	for _, link := range append(links, m.dirs.Claim(machine)) {
		if dir, err := os.Readlink(link); err == nil {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// BusyError says that a machine writes to the directory already, or to one above
// or below it: it runs it in place, or has it as the upper layer of an overlay.
type BusyError struct{ Dir, Holder string }

func (e *BusyError) Error() string {
	return fmt.Sprintf("directory %s is written to by machine %s: stop that task, or let this one write to one of its own "+
		"(ephemeral = true; an empty upper layer of overlay)", e.Dir, e.Holder)
}
