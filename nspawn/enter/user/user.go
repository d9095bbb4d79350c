// Package user finds users and groups in a container's own files, so that an image
// needs no getent(1).
package user

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxID is the largest uid or gid taken by number, as docker has it.
const maxID = 1<<31 - 1

// maxDatabase bounds what is read of a container's passwd and group files: it
// may have put anything there.
const maxDatabase = 8 << 20

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Identity is a user as the container's own files describe it.
type Identity struct {
	UID, GID int
	Groups   []int
	Name     string // "" where the files do not name the UID
	Home     string
}

// Lookup resolves USER or USER:GROUP, names or numbers, in the passwd and
// group files below root. It has docker's rules: numbers need no entry, "" is
// uid 0, and supplementary groups are looked up unless a group is given.
func Lookup(root, user string) (Identity, error) {
	owner, group, explicit := strings.Cut(user, ":")
	if explicit && group == "" {
		return Identity{}, fmt.Errorf("find user %q: no group after the colon", user)
	}
	who, err := lookupUser(root, owner)
	if err != nil {
		return Identity{}, err
	}
	if explicit {
		who.GID, err = lookupGroup(root, group)
		return who, err
	}
	if who.Name != "" {
		who.Groups, err = memberships(root, who.Name)
	}
	return who, err
}

func lookupUser(root, user string) (Identity, error) {
	if user == "" {
		user = "0"
	}
	uid, numeric := parseID(user)
	who := Identity{UID: uid, Home: "/"}
	found := false
	err := eachEntry(root, "etc/passwd", func(f []string) bool {
		id, okUID := parseID(field(f, 2))
		gid, okGID := parseID(field(f, 3))
		if !okUID || !okGID {
			return true
		}
		if numeric && id != uid || !numeric && f[0] != user {
			return true
		}
		found = true
		who.UID, who.GID, who.Name = id, gid, f[0]
		if home := field(f, 5); path.IsAbs(home) {
			who.Home = home
		}
		return false
	})
	if err == nil && !found && !numeric {
		err = fmt.Errorf("find user %q: not in the container's /etc/passwd; add it to the image or give its number", user)
	}
	return who, err
}

func lookupGroup(root, group string) (int, error) {
	gid, numeric := parseID(group)
	if numeric {
		return gid, nil
	}
	found := false
	err := eachEntry(root, "etc/group", func(f []string) bool {
		id, ok := parseID(field(f, 2))
		if ok && f[0] == group {
			gid, found = id, true
		}
		return !found
	})
	if err == nil && !found {
		err = fmt.Errorf("find group %q: not in the container's /etc/group; add it to the image or give its number", group)
	}
	return gid, err
}

// memberships returns the groups that list the user as a member, sorted.
func memberships(root, user string) ([]int, error) {
	var groups []int
	err := eachEntry(root, "etc/group", func(f []string) bool {
		gid, ok := parseID(field(f, 2))
		if ok && slices.Contains(strings.Split(field(f, 3), ","), user) {
			groups = append(groups, gid)
		}
		return true
	})
	slices.Sort(groups)
	return slices.Compact(groups), err
}

// Environment adds to env what a login would set and env lacks.
func (who Identity) Environment(env []string) []string {
	defaults := []string{"HOME=" + who.Home, "PATH=" + defaultPath}
	if who.Name != "" {
		defaults = append(defaults, "USER="+who.Name, "LOGNAME="+who.Name)
	}
	env = slices.Clone(env)
	for _, entry := range defaults {
		name, _, _ := strings.Cut(entry, "=")
		if _, set := LookupEnv(env, name); !set {
			env = append(env, entry)
		}
	}
	return env
}

// LookupEnv returns the value of a variable of an environment.
func LookupEnv(env []string, name string) (string, bool) {
	for _, entry := range env {
		if key, value, ok := strings.Cut(entry, "="); ok && key == name {
			return value, true
		}
	}
	return "", false
}

// eachEntry calls visit with the fields of each line of a passwd-like file
// until it returns false. A file that does not exist has no lines, nor has one that
// is hidden even from the container's root (--inaccessible=).
func eachEntry(root, name string, visit func(fields []string) bool) error {
	file, err := openRegular(path.Join(root, name))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	return scanEntries(file, visit)
}

func scanEntries(r io.Reader, visit func(fields []string) bool) error {
	limited := &io.LimitedReader{R: r, N: maxDatabase}
	lines := bufio.NewScanner(limited)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.ContainsAny(line[:1], "#+-:") {
			continue // comments and NIS markers name nobody
		}
		if !visit(strings.Split(line, ":")) {
			return nil
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read user database: %w", err)
	}
	if limited.N == 0 {
		return fmt.Errorf("read user database: larger than %d bytes", maxDatabase)
	}
	return nil
}

// openRegular opens a file that the container wrote: opening a FIFO there
// would block, a device might do worse.
func openRegular(name string) (*os.File, error) {
	file, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("open %s: not a regular file", name)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func field(fields []string, n int) string {
	if n < len(fields) {
		return fields[n]
	}
	return ""
}

// parseID reads a decimal uid or gid: digits only, so that "+1" is a name.
func parseID(s string) (int, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	id, err := strconv.Atoi(s)
	return id, err == nil && id <= maxID
}
