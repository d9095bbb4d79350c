package host

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// removeTree removes dir and everything below it, even if it is marked immutable, as
// systemd-importd and machined mark images. It refuses if something is mounted below: it
// would delete the files of the mount.
func removeTree(dir string) error {
	if mount, err := mountBelow(dir); err != nil {
		return err
	} else if mount != "" {
		return fmt.Errorf("remove %s: %s is a mount point", dir, mount)
	}
	if os.RemoveAll(dir) == nil {
		return nil
	}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && (entry.IsDir() || entry.Type().IsRegular()) {
			err = clearImmutable(path)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("clear immutable flags: %w", err)
	}
	return os.RemoveAll(dir)
}

// immutable is FS_IMMUTABLE_FL of linux/fs.h.
const immutable = 0x10

func clearImmutable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&immutable == 0 {
		return nil //nolint:nilerr // a file system without flags has no immutable files
	}
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutable)
}

// mountBelow returns a mount point at or below dir, if there is one.
func mountBelow(dir string) (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("read mounts: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && (fields[4] == dir || strings.HasPrefix(fields[4], dir+"/")) {
			return fields[4], nil
		}
	}
	return "", lines.Err()
}

// freeLoops detaches the loop devices of a killed host. They are found by inode, because
// the path that the kernel shows belongs to a mount that no longer exists.
func freeLoops(dir string) error {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return nil
	}
	loops := map[uint64]string{} // by inode of the backing file
	paths, _ := filepath.Glob("/dev/loop[0-9]*")
	for _, path := range paths {
		_ = withLoop(path, func(fd int) error {
			info, err := unix.IoctlLoopGetStatus64(fd)
			if err == nil && info.Device == st.Dev {
				loops[info.Inode] = path
			}
			return nil
		})
	}
	if len(loops) == 0 {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() || unix.Lstat(path, &st) != nil || loops[st.Ino] == "" {
			return err
		}
		return withLoop(loops[st.Ino], func(fd int) error {
			return unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0)
		})
	})
}

func withLoop(path string, do func(fd int) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return do(int(f.Fd()))
}
