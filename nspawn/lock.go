package nspawn

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// errLocked says that somebody else starts or removes the machine.
var errLocked = errors.New("machine is being started or removed")

// lock makes the caller the only one to start or remove the machine, among the
// calls of this process and other plugins on the host, until the file is closed
// or the process dies. Who holds it is done within its own deadline.
func (m *Manager) lock(machine string) (*os.File, error) { return m.lockBy(unix.F_OFD_SETLKW, machine) }

// tryLock is lock; if somebody holds it, the error is errLocked.
func (m *Manager) tryLock(machine string) (*os.File, error) {
	return m.lockBy(unix.F_OFD_SETLK, machine)
}

// lockBy locks a byte of one file for all machines, at the hash of the name: no
// file is left of a machine. Two of the same hash wait for each other. The lock
// is of the open file, not of the process (fcntl(2), F_OFD_SETLK).
func (m *Manager) lockBy(how int, machine string) (*os.File, error) {
	if err := os.MkdirAll(m.dirs.Run, 0o755); err != nil {
		return nil, fmt.Errorf("lock machine %s: %w", machine, err)
	}
	file, err := os.OpenFile(m.dirs.lock(), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock machine %s: %w", machine, err)
	}
	hash := fnv.New64a()
	hash.Write([]byte(machine))
	at := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(hash.Sum64() % math.MaxInt64), Len: 1}
	err = unix.EINTR
	for errors.Is(err, unix.EINTR) {
		err = unix.FcntlFlock(file.Fd(), how, &at)
	}
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		err = errLocked
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("lock machine %s: %w", machine, err)
	}
	return file, nil
}
