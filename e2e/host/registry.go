package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"golang.org/x/sys/unix"
)

// registryDir contains a directory per host on this machine: its record, the lock that its
// supervisor holds as long as it lives, PID 1's console and its readiness socket.
const registryDir = "/run/nomad-driver-nspawn-host"

// record is what is needed to enter a host and to remove its remains.
type record struct {
	Name       string
	Suite      string
	Index      int    // names the link and its addresses
	LAN        string // see Options
	Dir        string // the host's files on disk
	Supervisor int
	Leader     int // PID 1 of the host, seen from outside; 0 before it runs
}

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

func (r *record) path(file string) string {
	return filepath.Join(registryDir, r.Name, file)
}

// save replaces the record atomically, so that a reader, or a sweep after a kill, finds a
// complete one.
func (r *record) save() error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode record of host %s: %w", r.Name, err)
	}
	next := r.path("record.next")
	if err := os.WriteFile(next, data, 0o600); err != nil {
		return fmt.Errorf("write record of host %s: %w", r.Name, err)
	}
	return os.Rename(next, r.path("record"))
}

func loadRecord(name string) (*record, error) {
	data, err := os.ReadFile(filepath.Join(registryDir, name, "record"))
	if err != nil {
		return nil, fmt.Errorf("read record of host %s: %w", name, err)
	}
	r := &record{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("decode record of host %s: %w", name, err)
	}
	return r, nil
}

// lockFile opens and flocks path. The lock ends when the file is closed or the process
// dies. Children do not inherit the lock: Go opens every file close-on-exec.
func lockFile(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := flock(f, how); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// flock is flock(2), which a signal may interrupt while it waits.
func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// lockRegistry serializes the operations on several hosts: claiming a name and an index,
// sweeping, listing.
func lockRegistry() (*os.File, error) {
	if err := os.MkdirAll(registryDir, 0o700); err != nil {
		return nil, fmt.Errorf("create registry: %w", err)
	}
	return lockFile(filepath.Join(registryDir, ".lock"), unix.LOCK_EX)
}

// claim registers a new host under a free index and returns it with the lock that proves
// that its supervisor, the calling process, is alive.
func claim(name, suite, base, lan string) (*record, *os.File, error) {
	registry, err := lockRegistry()
	if err != nil {
		return nil, nil, err
	}
	defer registry.Close()
	hosts, err := sweep()
	if err != nil {
		return nil, nil, err
	}
	r := &record{Name: name, Suite: suite, Dir: filepath.Join(base, name), LAN: lan, Supervisor: os.Getpid()}
	used := map[int]bool{}
	for _, h := range hosts {
		if h.Name == name {
			return nil, nil, fmt.Errorf("host %s is up already: take it down or choose another name", name)
		}
		used[h.Index] = true
	}
	for used[r.Index] || linkExists(r.link()) || linkExists(r.port()) {
		r.Index++
	}
	if err := os.Mkdir(filepath.Join(registryDir, name), 0o700); err != nil {
		return nil, nil, fmt.Errorf("claim host name: %w", err)
	}
	alive, err := lockFile(r.path("alive"), unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		return nil, nil, err
	}
	return r, alive, r.save()
}

// sweep removes the remains of hosts whose supervisor is dead and returns the living hosts
// by name. The registry must be locked.
func sweep() ([]*record, error) {
	entries, err := os.ReadDir(registryDir)
	if err != nil {
		return nil, fmt.Errorf("read registry: %w", err)
	}
	var living []*record
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		r, err := sweepHost(entry.Name())
		if err != nil {
			return nil, fmt.Errorf("sweep host %s: %w", entry.Name(), err)
		}
		if r != nil {
			living = append(living, r)
		}
	}
	return living, nil
}

func sweepHost(name string) (*record, error) {
	alive, err := lockFile(filepath.Join(registryDir, name, "alive"), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return loadRecord(name)
	}
	if err != nil {
		return nil, err
	}
	defer alive.Close()
	r, err := loadRecord(name)
	if errors.Is(err, os.ErrNotExist) { // killed before it made anything
		return nil, os.RemoveAll(filepath.Join(registryDir, name))
	}
	if err != nil {
		return nil, err
	}
	progress("sweeping host %s, whose supervisor died", name)
	if err := r.remove(); err != nil {
		return nil, err
	}
	return nil, r.forget()
}

// remove ends every process of the host and removes everything it had except its record.
// forget removes the record, when nothing else is left. If remove fails, the next sweep
// tries again.
func (r *record) remove() error {
	err := errors.Join(
		killCgroup(r.cgroup()),
		removeLink(r.link()),
		r.leaveLAN(),
		removeCgroup(r.cgroup()),
		freeLoops(r.Dir),
		removeTree(r.Dir),
	)
	if err != nil {
		return fmt.Errorf("remove host %s: %w", r.Name, err)
	}
	return nil
}

// forget removes the record, and the LAN if this was its last host. The registry must be
// locked.
func (r *record) forget() error {
	if err := r.removeEmptyLAN(); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(registryDir, r.Name))
}

// end is the last thing that a supervisor does.
func (r *record) end() error {
	if err := r.remove(); err != nil {
		return err
	}
	registry, err := lockRegistry()
	if err != nil {
		return err
	}
	defer registry.Close()
	return r.forget()
}

// living lists the hosts that are up, by name.
func living() ([]*record, error) {
	registry, err := lockRegistry()
	if err != nil {
		return nil, err
	}
	defer registry.Close()
	hosts, err := sweep()
	return slices.DeleteFunc(hosts, func(r *record) bool { return r.Leader == 0 }), err
}
