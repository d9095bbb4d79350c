package nspawn

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"slices"

	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/launch"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/stage"
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

// mounts is where the machine's mounts are, in its stage.
func (d Dirs) mounts(name string) string { return filepath.Join(d.machine(name), "mounts") }

// mounted is one of them.
func (d Dirs) mounted(name, mount string) string { return filepath.Join(d.mounts(name), mount) }

// root is the machine's root, in its stage.
func (d Dirs) root(name string) string { return d.mounted(name, "root") }

// claim is a symbolic link to the image that the machine runs in place.
func (d Dirs) claim(name string) string { return filepath.Join(d.machine(name), "claim") }

// journal is a symbolic link that leads where that in the host's journal does.
func (d Dirs) journal(name string) string { return filepath.Join(d.machine(name), "journal") }

// pins is the directory of the files that pin the mount namespaces of machines, and the
// root of the namespace where they do, see package stage.
func (d Dirs) pins() string { return filepath.Join(d.Run, "namespaces") }

func (d Dirs) pin(name string) string { return filepath.Join(d.pins(), name+pinSuffix) }

// pinSuffix tells pins from the program that enters them.
const pinSuffix = ".mnt"

// overlayRW has what an overlay of a machine writes, or is a symbolic link to its
// upper layer.
func (d Dirs) overlayRW(machine, index string) string {
	return filepath.Join(d.writable(machine), "overlays", index)
}

// gate is the directory in which the shim finds the plugin. The container sees it.
func (d Dirs) gate(name string) string { return filepath.Join(d.machine(name), "gate") }

// shim is the program that a machine without a user namespace begins with.
func (d Dirs) shim(name string) string { return filepath.Join(d.machine(name), "shim") }

// begun records whether the payload has begun, see Manager.begin.
func (d Dirs) begun(name string) string { return filepath.Join(d.machine(name), "begun") }

// named is a file by which the machine finds names, by its path in there.
func (d Dirs) named(machine, path string) string {
	return filepath.Join(d.machine(machine), namesMount, filepath.Base(path))
}

// credentials is the directory with the machine's secrets, mode 0700.
func (d Dirs) credentials(name string) string { return filepath.Join(d.machine(name), "credentials") }

// notify is the socket on which systemd-nspawn reports.
func (d Dirs) notify(name string) string { return filepath.Join(d.machine(name), "notify") }

func (d Dirs) writables() string { return filepath.Join(d.State, "machines") }

// writable is the directory of the machine's writable layer, mode 0700, unless
// that is in memory.
func (d Dirs) writable(name string) string { return filepath.Join(d.writables(), name) }

// unlinkedUsers has a file for each machine for which a directory is mounted on itself.
func (d Dirs) unlinkedUsers(path string) string {
	return filepath.Join(d.Run, "unlinked-users", fmt.Sprintf("%x", sha256.Sum256([]byte(path))))
}

// unlinkedBy has a symbolic link to each of these directories.
func (d Dirs) unlinkedBy(name string) string { return filepath.Join(d.machine(name), "unlinked") }

// unlinked has a symbolic link to each directory of ForbidLinks.
func (d Dirs) unlinked() string { return filepath.Join(d.Run, "unlinked") }

// ranges records which machine has which UID range.
func (d Dirs) ranges() string { return filepath.Join(d.Run, "uid") }

// disks is where disk images are mounted.
func (d Dirs) disks() string { return filepath.Join(d.Run, "disks") }

// Images is the store of images.
func (d Dirs) Images() string { return filepath.Join(d.State, "images") }

// host is what the machine of a spec, whose UIDs begin at base, is run with.
func (d Dirs) host(s machine.Spec, base uint32, t tool) machine.Host {
	start := launch.Launch{
		Program: t.program, Keeper: stage.KeeperOf(d.pin(s.Machine)), Namespace: "/" + filepath.Base(d.pin(s.Machine)),
		Root: d.root(s.Machine), Own: !s.Root.InPlace, Owner: base,
	}
	return machine.Host{
		Launcher:    start.Args(nil),
		UIDBase:     base,
		Nspawn:      t.path,
		Version:     t.version,
		Shim:        d.mounted(s.Machine, shimMount),
		Gate:        d.mounted(s.Machine, gateMount),
		Root:        d.root(s.Machine),
		Notify:      d.notify(s.Machine),
		Credentials: d.credentials(s.Machine),
		Binds: slices.Concat(
			nspawnBinds(shownBy(s), func(name string) string { return d.mounted(s.Machine, name) }), d.deviceBinds(s), d.nameBinds(s),
		),
	}
}

// nameBinds show the files by which the machine finds names.
func (d Dirs) nameBinds(s machine.Spec) (binds []machine.Bind) {
	for _, file := range s.Names.Files() {
		binds = append(binds, machine.Bind{
			Source: d.mounted(s.Machine, filepath.Join(namesMount, filepath.Base(file.Path))), Destination: file.Path, ReadOnly: true,
		})
	}
	return binds
}

// Describe shows what starting the machine asks of this systemd.
func Describe(s machine.Spec, systemdVersion int) string {
	var base uint32
	if s.Root.UserNamespace {
		base = 1000 * idmap.RangeSize // for example
	}
	t := tool{path: "systemd-nspawn", version: systemdVersion, program: "nomad-driver-nspawn"}
	return machine.Describe(s, DefaultDirs.host(s, base, t))
}
