package filelock

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrLocked means that another caller holds the lock of the name.
var ErrLocked = errors.New("machine is being started or removed")

// Names are locks by name. All of them are in one file.
type Names struct{ File string }

// Lock waits until the caller is the only one that starts or removes the machine, among
// the calls of this process and of other plugins on the host. The lock ends when the file
// is closed or the process dies. Every holder has a deadline of its own, so Lock needs
// none.
func (n Names) Lock(name string) (*os.File, error) { return n.lockBy(unix.F_OFD_SETLKW, name) }

// TryLock is like Lock, but returns ErrLocked if another caller holds the lock.
func (n Names) TryLock(name string) (*os.File, error) { return n.lockBy(unix.F_OFD_SETLK, name) }

// lockBy locks the byte of the file at the hash of the name, so that no file per machine
// is left behind. Two names with the same hash wait for each other. The lock belongs to
// the open file, not to the process (fcntl(2), F_OFD_SETLK).
func (n Names) lockBy(how int, name string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(n.File), 0o755); err != nil {
		return nil, fmt.Errorf("lock machine %s: %w", name, err)
	}
	file, err := os.OpenFile(n.File, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock machine %s: %w", name, err)
	}
	hash := fnv.New64a()
	hash.Write([]byte(name))
	at := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(hash.Sum64() % math.MaxInt64), Len: 1}
	err = unix.EINTR
	for errors.Is(err, unix.EINTR) {
		err = unix.FcntlFlock(file.Fd(), how, &at)
	}
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		err = ErrLocked
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("lock machine %s: %w", name, err)
	}
	return file, nil
}
