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

// ErrLocked says that somebody else has locked the name.
var ErrLocked = errors.New("machine is being started or removed")

// Names are the locks of machines and the like, by name, all in one file.
type Names struct{ File string }

// Lock makes the caller the only one to start or remove the machine, among the
// calls of this process and other plugins on the host, until the file is closed
// or the process dies. Who holds it is done within its own deadline.
func (n Names) Lock(name string) (*os.File, error) { return n.lockBy(unix.F_OFD_SETLKW, name) }

// TryLock is Lock; if somebody holds it, the error is ErrLocked.
func (n Names) TryLock(name string) (*os.File, error) { return n.lockBy(unix.F_OFD_SETLK, name) }

// lockBy locks a byte of one file for all machines, at the hash of the name: no
// file is left of a machine. Two of the same hash wait for each other. The lock
// is of the open file, not of the process (fcntl(2), F_OFD_SETLK).
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
