package enter

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// group is the cgroup of one command, below the container's cgroup. It belongs to host
// root, so the container can neither freeze it nor move processes into it.
type group struct {
	path string
	dir  *os.File
}

// A group is named like a unit of systemd for processes that systemd did not start, such
// as those of machinectl shell and of Nomad itself.
const (
	groupPrefix = "exec-"
	groupSuffix = ".scope"
)

// maxLeftGroups limits how many names of cgroups in the container's are read.
const maxLeftGroups = 4096

// makeGroup makes the group of a command, in the cgroup that was delegated to the
// container. A systemd in the machine manages its own groups beside it.
func makeGroup(parent string) (*group, error) {
	removeLeftGroups(parent)
	path := filepath.Join(parent, groupPrefix+strings.ToLower(rand.Text()[:12])+groupSuffix)
	g := &group{path: path}
	usedGroups.Store(path, true)
	err := os.Mkdir(path, 0o755)
	if errors.Is(err, unix.EAGAIN) {
		err = fmt.Errorf("%w: the machine has as many cgroups as it may have", err)
	}
	if err == nil {
		g.dir, err = openPath(path)
	}
	if err != nil {
		g.remove()
		return nil, err
	}
	return g, nil
}

// usedGroups holds the paths of the groups of running commands.
var usedGroups sync.Map

// removeLeftGroups removes groups of earlier commands that left processes behind, if
// these have ended.
func removeLeftGroups(parent string) {
	dir, err := os.Open(parent)
	if err != nil {
		return
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(maxLeftGroups)
	for _, name := range names {
		if _, used := usedGroups.Load(filepath.Join(parent, name)); used {
			continue
		}
		if strings.HasPrefix(name, groupPrefix) && strings.HasSuffix(name, groupSuffix) {
			_ = unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR) // EBUSY: not empty
		}
	}
}

// kill kills all processes of the group, even frozen ones.
func (g *group) kill() {
	fd, err := unix.Openat(int(g.dir.Fd()), "cgroup.kill", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return // the machine has ended
	}
	defer unix.Close(fd)
	_, _ = unix.Write(fd, []byte("1"))
}

// remove removes the group. If the command has left processes behind, the group is
// removed later, together with the machine or when the next command is run.
func (g *group) remove() {
	_ = unix.Rmdir(g.path)
	usedGroups.Delete(g.path)
	if g.dir != nil {
		g.dir.Close()
	}
}
