package nspawn

import (
	"path/filepath"

	"nomad-driver-nspawn/nspawn/machine"
)

// Dirs are the places on the host where a machine keeps its files. All paths
// below them follow from the machine's name.
type Dirs struct {
	// Run is a directory on a tmpfs: what is in it is void after a reboot.
	Run string
	// State is a directory on a real file system: an overlay's writable layer
	// can neither be on an overlay nor should it be in memory.
	State string
}

// DefaultDirs is where the driver keeps its files.
var DefaultDirs = Dirs{Run: "/run/nomad-driver-nspawn", State: "/var/lib/nomad-driver-nspawn"}

// lock is the file in which machines are locked, see Manager.lock.
func (d Dirs) lock() string { return filepath.Join(d.Run, "lock") }

func (d Dirs) machines() string { return filepath.Join(d.Run, "machines") }

// machine is the machine's own directory below Run, mode 0700.
func (d Dirs) machine(name string) string { return filepath.Join(d.machines(), name) }

// root is the machine's root: the mount point of its overlay, or a symbolic
// link to the directory that it runs in place.
func (d Dirs) root(name string) string { return filepath.Join(d.machine(name), "root") }

// environment is the file with the task's environment, mode 0600.
func (d Dirs) environment(name string) string { return filepath.Join(d.machine(name), "environment") }

// notify is the socket on which systemd-nspawn reports.
func (d Dirs) notify(name string) string { return filepath.Join(d.machine(name), "notify") }

func (d Dirs) writables() string { return filepath.Join(d.State, "machines") }

// writable is the directory of the machine's writable layer, mode 0700, unless
// that is in memory.
func (d Dirs) writable(name string) string { return filepath.Join(d.writables(), name) }

// ranges records which machine has which UID range.
func (d Dirs) ranges() string { return filepath.Join(d.Run, "uid") }

// disks is where disk images are mounted.
func (d Dirs) disks() string { return filepath.Join(d.Run, "disks") }

// Images is the store of images.
func (d Dirs) Images() string { return filepath.Join(d.State, "images") }

// rootOf is the directory that nspawn gets as the machine's root.
func (d Dirs) rootOf(s Spec) string {
	if s.Root.InPlace {
		return s.Root.Image
	}
	return d.root(s.Machine)
}

// host is what the machine of a spec, as it is prepared, is run with.
func (d Dirs) host(s Spec, t tool) machine.Host {
	return machine.Host{
		Nspawn:      t.path,
		Version:     t.version,
		Shim:        t.shim,
		Root:        d.rootOf(s),
		Environment: d.environment(s.Machine),
		Notify:      d.notify(s.Machine),
		Binds:       allBinds(s, d),
	}
}
