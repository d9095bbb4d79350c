// Package dirs tells where a machine keeps its files on the host.
package dirs

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"
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

// Default is where the driver keeps its files.
var Default = Dirs{Run: "/run/nomad-driver-nspawn", State: "/var/lib/nomad-driver-nspawn"}

// Lock is the file in which machines are locked, see package filelock.
func (d Dirs) Lock() string { return filepath.Join(d.Run, "lock") }

// Machines has a directory for each machine.
func (d Dirs) Machines() string { return filepath.Join(d.Run, "machines") }

// Machine is the machine's own directory below Run, mode 0700.
func (d Dirs) Machine(name string) string { return filepath.Join(d.Machines(), name) }

// Mounts is where the machine's mounts are, in its stage.
func (d Dirs) Mounts(name string) string { return filepath.Join(d.Machine(name), "mounts") }

// Mounted is one of them.
func (d Dirs) Mounted(name, mount string) string { return filepath.Join(d.Mounts(name), mount) }

// Root is the machine's root, in its stage.
func (d Dirs) Root(name string) string { return d.Mounted(name, "root") }

// Claim is a symbolic link to the image that the machine runs in place.
func (d Dirs) Claim(name string) string { return filepath.Join(d.Machine(name), "claim") }

// Journal is a symbolic link that leads where that in the host's journal does.
func (d Dirs) Journal(name string) string { return filepath.Join(d.Machine(name), "journal") }

// Pins is the directory of the files that pin the mount namespaces of machines, and the
// root of the namespace where they do, see package stage.
func (d Dirs) Pins() string { return filepath.Join(d.Run, "namespaces") }

// Pin is the file of one machine.
func (d Dirs) Pin(name string) string { return filepath.Join(d.Pins(), name+PinSuffix) }

// PinSuffix tells pins from the program that enters them.
const PinSuffix = ".mnt"

// OverlayRW has what an overlay of a machine writes, or is a symbolic link to its
// upper layer.
func (d Dirs) OverlayRW(machine, index string) string {
	return filepath.Join(d.WritableLayer(machine), "overlays", index)
}

// OverlayWork is the name of the directory that overlayfs works in, beside an
// upper layer.
func OverlayWork(machine, index string) string { return ".nomad-nspawn-" + machine + "-" + index }

// Gate is the directory in which the shim finds the plugin. The container sees it.
func (d Dirs) Gate(name string) string { return filepath.Join(d.Machine(name), "gate") }

// Shim is the program that a machine without a user namespace begins with.
func (d Dirs) Shim(name string) string { return filepath.Join(d.Machine(name), "shim") }

// Begun records whether the payload of a leader has begun.
func (d Dirs) Begun(name string) string { return filepath.Join(d.Machine(name), "begun") }

// Named is a file by which the machine finds names, by its path in there.
func (d Dirs) Named(machine, path string) string {
	return filepath.Join(d.Machine(machine), "names", filepath.Base(path))
}

// Credentials is the directory with the machine's secrets, mode 0700.
func (d Dirs) Credentials(name string) string { return filepath.Join(d.Machine(name), "credentials") }

// Notify is the socket on which systemd-nspawn reports.
func (d Dirs) Notify(name string) string { return filepath.Join(d.Machine(name), "notify") }

// WritableLayers has the writable layers of machines.
func (d Dirs) WritableLayers() string { return filepath.Join(d.State, "machines") }

// WritableLayer is the directory of the machine's writable layer, mode 0700, unless
// that is in memory.
func (d Dirs) WritableLayer(name string) string { return filepath.Join(d.WritableLayers(), name) }

// NoSymfollowUsers has a file for each machine for which a directory is mounted on itself.
func (d Dirs) NoSymfollowUsers(path string) string {
	return filepath.Join(d.Run, "unlinked-users", fmt.Sprintf("%x", sha256.Sum256([]byte(path))))
}

// NoSymfollowDirs has a symbolic link to each of these directories.
func (d Dirs) NoSymfollowDirs(name string) string { return filepath.Join(d.Machine(name), "unlinked") }

// NoSymfollowAllocs has a symbolic link to each directory of guard.ForbidLinks.
func (d Dirs) NoSymfollowAllocs() string { return filepath.Join(d.Run, "unlinked") }

// Ranges records which machine has which UID range.
func (d Dirs) Ranges() string { return filepath.Join(d.Run, "uid") }

// Disks is where disk images are mounted.
func (d Dirs) Disks() string { return filepath.Join(d.Run, "disks") }

// Images is the store of images.
func (d Dirs) Images() string { return filepath.Join(d.State, "images") }
