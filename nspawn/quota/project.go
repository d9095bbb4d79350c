package quota

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Project quotas of ext4 and xfs count the files of a project. A new file inherits the
// project of its directory. No record is needed, because the file system stores the
// project of a directory. See quotactl(2) and linux/fs.h.
//
// ext4 quotas do not bind a process with CAP_SYS_RESOURCE, such as root. But overlayfs
// drops that capability when it writes on behalf of a caller (ovl_fill_super, since Linux
// 4.12). Only processes in the initial user namespace may change a project
// (fileattr_set_prepare).

const (
	projectQuotas  = 2 // PRJQUOTA
	quotaGet       = 0x800007<<8 | projectQuotas
	quotaSet       = 0x800008<<8 | projectQuotas
	quotaState     = 0x5808<<8 | projectQuotas // Q_XGETQSTATV
	stateEnforced  = 1 << 5                    // FS_QUOTA_PDQ_ENFD
	limitsValid    = 1 | 4                     // QIF_BLIMITS, QIF_ILIMITS
	quotaBlock     = 1024                      // bytes
	xattrGet       = 0x801c581f                // FS_IOC_FSGETXATTR
	xattrSet       = 0x401c5820                // FS_IOC_FSSETXATTR
	xattrInherited = 0x200                     // FS_XFLAG_PROJINHERIT
)

// quota is struct if_dqblk.
type quota struct {
	blockHard, blockSoft uint64 // in units of quotaBlock
	space                uint64 // bytes
	inodeHard, inodeSoft uint64
	inodes               uint64
	blockTime, inodeTime uint64
	valid                uint32
}

// fileXattr is struct fsxattr.
type fileXattr struct {
	flags, extentSize, extents, project, cowExtentSize uint32
	_                                                  [8]byte
}

// quotactl calls quotactl_fd(2), which needs Linux 5.14.
func quotactl(fd uintptr, command, id uintptr, value unsafe.Pointer) error {
	if _, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, fd, command, id, uintptr(value), 0, 0); errno != 0 {
		return errno
	}
	return nil
}

func ioctl(fd, request uintptr, value unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(value)); errno != 0 {
		return errno
	}
	return nil
}

// projectsEnforced reports whether limits of projects are enforced. Without its mount
// option, ext4 only counts.
func projectsEnforced(file *os.File) bool {
	state := struct { // fs_quota_statv, whose first version has 160 bytes
		version, _ uint8
		flags      uint16
		_          [252]byte
	}{version: 1}
	err := quotactl(file.Fd(), quotaState, 0, unsafe.Pointer(&state))
	return err == nil && state.flags&stateEnforced != 0
}

func makeProject(dir string, size uint64, first uint32) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	file, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer file.Close()
	project, err := freeProject(file, first)
	if err != nil {
		return err
	}
	attr, err := projectOf(file)
	if err != nil {
		return err
	}
	attr.flags |= xattrInherited
	attr.project = project
	if err := setProject(file, attr); err != nil {
		return err
	}
	limits := quota{blockHard: max(size/quotaBlock, 1), inodeHard: Inodes(size), valid: limitsValid}
	if err := quotactl(file.Fd(), quotaSet, uintptr(project), unsafe.Pointer(&limits)); err != nil {
		return fmt.Errorf("limit project %d: %w", project, err)
	}
	return nil
}

// freeProject returns the first project from first on that has no files. A directory that
// remained after a crash of the host may still use one of them.
func freeProject(file *os.File, first uint32) (uint32, error) {
	for id := first; id < first+projectsEach; id++ {
		var used quota
		err := quotactl(file.Fd(), quotaGet, uintptr(id), unsafe.Pointer(&used))
		if errors.Is(err, unix.ENOENT) || err == nil && used.inodes == 0 && used.space == 0 { // the errors of xfs and of ext4
			return id, nil
		}
		if err != nil {
			return 0, fmt.Errorf("inspect project %d: %w", id, err)
		}
	}
	return 0, fmt.Errorf("projects %d to %d are all in use", first, first+projectsEach-1)
}

// dropProject ends the limit of the directory's project, and removes the directory from
// the project. Otherwise tree.Remove could not move files of another project into it
// (rename(2), EXDEV). A project that the directory shares with its parent is not ours,
// and is left alone.
func dropProject(dir *os.File) error {
	attr, err := projectOf(dir)
	if err != nil || attr.project == 0 {
		return err
	}
	parent, err := os.Open(filepath.Dir(dir.Name()))
	if err != nil {
		return err
	}
	defer parent.Close()
	if above, err := projectOf(parent); err != nil || above.project == attr.project {
		return err
	}
	none := quota{valid: limitsValid}
	err = quotactl(dir.Fd(), quotaSet, uintptr(attr.project), unsafe.Pointer(&none))
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENOSYS) { // it has been mounted without quotas since then
		return fmt.Errorf("end the limit of project %d: %w", attr.project, err)
	}
	attr.flags &^= xattrInherited
	attr.project = 0
	return setProject(dir, attr)
}

// projectOf returns the attributes of a directory. Their project is the one that new
// files get, or 0 if they get none.
func projectOf(dir *os.File) (attr fileXattr, err error) {
	err = ioctl(dir.Fd(), xattrGet, unsafe.Pointer(&attr))
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) { // a file system without projects
		return fileXattr{}, nil
	}
	if err != nil {
		return attr, fmt.Errorf("look up the project of %s: %w", dir.Name(), err)
	}
	if attr.flags&xattrInherited == 0 {
		attr.project = 0
	}
	return attr, nil
}

func setProject(dir *os.File, attr fileXattr) error {
	if err := ioctl(dir.Fd(), xattrSet, unsafe.Pointer(&attr)); err != nil {
		return fmt.Errorf("set the project of %s to %d: %w", dir.Name(), attr.project, err)
	}
	return nil
}
