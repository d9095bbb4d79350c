package parts

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/mounts"
)

// linkedPlaces are places of a root that package places makes real directories, and whose
// content an image may have elsewhere, behind a link. systemd-nspawn mounts something of
// its own over the other places.
var linkedPlaces = []string{"etc", "root", "var"}

// linked is a directory of the image that a link at one of the places leads to.
type linked struct {
	place string
	dir   *os.File
}

// openLinked opens the directories that links at linkedPlaces lead to. Links are resolved
// as in the machine, so none leads out of the root. A link that leads to no directory is
// left out.
func openLinked(root *os.File) (list []linked, err error) {
	for _, place := range linkedPlaces {
		var stat unix.Stat_t
		err := unix.Fstatat(int(root.Fd()), place, &stat, unix.AT_SYMLINK_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return list, fmt.Errorf("inspect /%s of the machine: %w", place, err)
		}
		if err != nil || stat.Mode&unix.S_IFMT != unix.S_IFLNK {
			continue
		}
		how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
		if fd, err := unix.Openat2(int(root.Fd()), place, &how); err == nil {
			list = append(list, linked{place, os.NewFile(uintptr(fd), place)})
		}
	}
	return list, nil
}

// showLinked mounts the directories at the places whose links they were behind.
func showLinked(root *os.File, list []linked) error {
	for _, l := range list {
		if err := l.show(root); err != nil {
			return fmt.Errorf("show /%s of the machine, which is a link in the image: %w", l.place, err)
		}
	}
	return nil
}

func (l linked) show(root *os.File) error {
	tree, err := mounts.CopyOne(l.dir)
	if err != nil {
		return err
	}
	defer tree.Close()
	at, err := mounts.OpenBeneath(root, l.place, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer at.Close()
	return mounts.Attach(tree, at)
}
