// Package dirs has the paths of the driver's files on the host.
package dirs

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"
)

// Dirs are the directories of the driver's files. All paths below them follow from the
// machine's name.
type Dirs struct {
	// Run is on a tmpfs: its contents are void after a reboot.
	Run string
	// State is on a real file system. The writable layer of an overlay cannot be on an
	// overlay, and should not be in memory.
	State string
}

// Default is what the driver uses.
var Default = Dirs{Run: "/run/nomad-driver-nspawn", State: "/var/lib/nomad-driver-nspawn"}

// Lock is the file of the machines' locks (package filelock).
func (d Dirs) Lock() string { return filepath.Join(d.Run, "lock") }

// Machines contains a directory for each machine.
func (d Dirs) Machines() string { return filepath.Join(d.Run, "machines") }

// Machine is the machine's own directory below Run, mode 0700.
func (d Dirs) Machine(name string) string { return filepath.Join(d.Machines(), name) }

// Mounts contains the machine's mounts, in its stage.
func (d Dirs) Mounts(name string) string { return filepath.Join(d.Machine(name), "mounts") }

// Mounted is one of the machine's mounts.
func (d Dirs) Mounted(name, mount string) string { return filepath.Join(d.Mounts(name), mount) }

// Root is the machine's root, in its stage.
func (d Dirs) Root(name string) string { return d.Mounted(name, "root") }

// Claim is a symbolic link to the image that the machine runs in place.
func (d Dirs) Claim(name string) string { return filepath.Join(d.Machine(name), "claim") }

// Journal is a symbolic link with the same target as the one in the host's journal.
func (d Dirs) Journal(name string) string { return filepath.Join(d.Machine(name), "journal") }

// Pins contains the files that pin the mount namespaces of machines. It is also the root
// of the namespace in which they are mounted (package stage).
func (d Dirs) Pins() string { return filepath.Join(d.Run, "namespaces") }

// Pin is the file that pins the machine's mount namespace.
func (d Dirs) Pin(name string) string { return filepath.Join(d.Pins(), name+PinSuffix) }

// PinSuffix distinguishes pins from the program that enters them.
const PinSuffix = ".mnt"

// OverlayRW contains what the machine writes to one of its overlays, or is a symbolic link
// to the overlay's upper layer.
func (d Dirs) OverlayRW(name, index string) string {
	return filepath.Join(d.WritableLayer(name), "overlays", index)
}

// OverlayWork is the name of the work directory of overlayfs, beside an upper layer.
func OverlayWork(name, index string) string { return ".nomad-nspawn-" + name + "-" + index }

// Gate is the directory with the plugin's socket for the shim. The container sees it.
func (d Dirs) Gate(name string) string { return filepath.Join(d.Machine(name), "gate") }

// Shim is the program that a machine without a user namespace begins with.
func (d Dirs) Shim(name string) string { return filepath.Join(d.Machine(name), "shim") }

// Begun records which leader's payload has begun.
func (d Dirs) Begun(name string) string { return filepath.Join(d.Machine(name), "begun") }

// Named is the host's copy of a file for name resolution, by the file's path in the
// machine.
func (d Dirs) Named(name, path string) string {
	return filepath.Join(d.Machine(name), "names", filepath.Base(path))
}

// Zones contains a file for each zone that has members.
func (d Dirs) Zones() string { return filepath.Join(d.Run, "zones") }

// Zone has the names and addresses of a zone's members.
func (d Dirs) Zone(zone string) string { return filepath.Join(d.Zones(), zone) }

// Credentials contains the machine's secrets, mode 0700.
func (d Dirs) Credentials(name string) string { return filepath.Join(d.Machine(name), "credentials") }

// Notify is the socket on which systemd-nspawn reports.
func (d Dirs) Notify(name string) string { return filepath.Join(d.Machine(name), "notify") }

// WritableLayers contains the writable layers of machines.
func (d Dirs) WritableLayers() string { return filepath.Join(d.State, "machines") }

// WritableLayer is the machine's writable layer, mode 0700, unless that is in memory.
func (d Dirs) WritableLayer(name string) string { return filepath.Join(d.WritableLayers(), name) }

// NoSymfollowUsers contains a file for each machine that needs a directory of the host to
// be mounted on itself with nosymfollow.
func (d Dirs) NoSymfollowUsers(path string) string {
	return filepath.Join(d.Run, "unlinked-users", fmt.Sprintf("%x", sha256.Sum256([]byte(path))))
}

// NoSymfollowDirs contains a symbolic link to each directory that is mounted so for a machine.
func (d Dirs) NoSymfollowDirs(name string) string { return filepath.Join(d.Machine(name), "unlinked") }

// NoSymfollowAllocs contains a symbolic link to each directory of guard.ForbidLinks.
func (d Dirs) NoSymfollowAllocs() string { return filepath.Join(d.Run, "unlinked") }

// Ranges records the machines' UID ranges.
func (d Dirs) Ranges() string { return filepath.Join(d.Run, "uid") }

// Disks contains the mount points of disk images.
func (d Dirs) Disks() string { return filepath.Join(d.Run, "disks") }

// Images is the store of images.
func (d Dirs) Images() string { return filepath.Join(d.State, "images") }
