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

// group is the cgroup of one command, below the container's own. It is host root's,
// so the container can neither freeze it nor fill it with processes that it did not
// start there.
type group struct {
	path string
	dir  *os.File
}

// The name of a group is that of a unit which systemd makes for processes that it
// did not start, as those of machinectl shell and Nomad's own.
const (
	groupPrefix = "exec-"
	groupSuffix = ".scope"
)

// maxLeftGroups bounds how many names of the container's groups are looked at.
const maxLeftGroups = 4096

// makeGroup makes the group of a command in the one that the container was given. A
// systemd in the machine keeps its own order beside it.
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

// usedGroups has the paths of the groups of commands that run.
var usedGroups sync.Map

// removeLeftGroups removes the groups of earlier commands that left processes behind,
// where these have ended.
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

// kill kills all processes of the group, also frozen ones.
func (g *group) kill() {
	fd, err := unix.Openat(int(g.dir.Fd()), "cgroup.kill", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return // the machine has ended
	}
	defer unix.Close(fd)
	_, _ = unix.Write(fd, []byte("1"))
}

// remove removes the group, unless the command has left processes behind. It does
// so later in that case, with the next command or with the machine.
func (g *group) remove() {
	_ = unix.Rmdir(g.path)
	usedGroups.Delete(g.path)
	if g.dir != nil {
		g.dir.Close()
	}
}
