package enter

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// shimExecutable returns the program to run as the shim. The caller closes it.
//
// This is the built-in program if possible. It is missing after a plain `go build`, and
// it cannot be run from memory with sysctl vm.memfd_noexec=2. Then it is our own program,
// which takes longer to start. A container that reaches either of them through
// /proc/PID/exe cannot change it (CVE-2019-5736).
func shimExecutable() (*os.File, error) {
	if len(builtin) > 0 {
		if file, err := inMemory.open(); err == nil {
			return file, nil
		}
	}
	return protectedExecutable()
}

// inMemory holds the built-in program, after its first use.
var inMemory memory

type memory struct {
	mu   sync.Mutex
	file *os.File
}

func (m *memory) open() (*os.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.file == nil {
		file, err := unpack(builtin)
		if err != nil {
			return nil, err
		}
		m.file = file
	}
	fd, err := unix.FcntlInt(m.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate the shim's descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), "shim"), nil
}

// unpack makes a file in memory that cannot be changed.
func unpack(program []byte) (*os.File, error) {
	file, err := executableMemory()
	if err != nil {
		return nil, err
	}
	if _, err := file.Write(program); err != nil {
		file.Close()
		return nil, err
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	_, err = unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, seals|unix.F_SEAL_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3, the mode cannot be sealed
		_, err = unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("seal the shim: %w", err)
	}
	return file, nil
}

// executableMemory returns an executable file in memory. Linux supports MFD_EXEC since
// 6.3, and may require it (sysctl vm.memfd_noexec=1).
func executableMemory() (*os.File, error) {
	file, err := memfd("shim", unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) {
		return memfd("shim", unix.MFD_ALLOW_SEALING)
	}
	return file, err
}

// protectedExecutable returns our own executable, on a read-only mount of its own.
func protectedExecutable() (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/proc/self/exe", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("clone mount of own executable: %w", err)
	}
	file := os.NewFile(uintptr(fd), "shim")
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV,
	})
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("make mount of own executable read-only: %w", err)
	}
	return file, nil
}

// Shim returns the built-in program, or nil if there is none.
func Shim() []byte { return builtin }
