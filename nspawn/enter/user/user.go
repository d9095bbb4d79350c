// Package user looks up users and groups in a container's own files, so that an image
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

// maxID is the largest UID or GID that may be given as a number, the same as in docker.
const maxID = 1<<31 - 1

// maxDatabase limits how much of a container's passwd and group files is read, because
// they may contain anything.
const maxDatabase = 8 << 20

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Identity is a user as described in the container's files.
type Identity struct {
	UID, GID int
	Groups   []int
	Name     string // "" if the files do not name the UID
	Home     string
}

// Lookup resolves USER or USER:GROUP, as names or numbers, in the passwd and group files
// below root. It follows docker's rules: a number needs no entry, "" is UID 0, and
// supplementary groups are looked up unless a group is given.
func Lookup(root, user string) (Identity, error) {
	owner, group, explicit := strings.Cut(user, ":")
	if explicit && group == "" {
		return Identity{}, fmt.Errorf("find user %q: no group after the colon", user)
	}
	identity, err := lookupUser(root, owner)
	if err != nil {
		return Identity{}, err
	}
	if explicit {
		identity.GID, err = lookupGroup(root, group)
		return identity, err
	}
	if identity.Name != "" {
		identity.Groups, err = memberships(root, identity.Name)
	}
	return identity, err
}

func lookupUser(root, user string) (Identity, error) {
	if user == "" {
		user = "0"
	}
	uid, numeric := parseID(user)
	identity := Identity{UID: uid, Home: "/"}
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
		identity.UID, identity.GID, identity.Name = id, gid, f[0]
		if home := field(f, 5); path.IsAbs(home) {
			identity.Home = home
		}
		return false
	})
	if err == nil && !found && !numeric {
		err = fmt.Errorf("find user %q: not in the container's /etc/passwd; add it to the image or give its number", user)
	}
	return identity, err
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

// Environment returns env with the variables added that a login would set, unless env has
// them.
func (identity Identity) Environment(env []string) []string {
	defaults := []string{"HOME=" + identity.Home, "PATH=" + defaultPath}
	if identity.Name != "" {
		defaults = append(defaults, "USER="+identity.Name, "LOGNAME="+identity.Name)
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

// LookupEnv returns the value of a variable in an environment.
func LookupEnv(env []string, name string) (string, bool) {
	for _, entry := range env {
		if key, value, ok := strings.Cut(entry, "="); ok && key == name {
			return value, true
		}
	}
	return "", false
}

// eachEntry calls visit with the fields of each line of a file in the format of passwd,
// until visit returns false. It treats a missing file as empty, and also a file that is
// hidden even from the container's root (--inaccessible=).
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
			continue // comments and NIS markers are not users or groups
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

// openRegular opens a file that the container may have made. It refuses other types:
// opening a FIFO would block, and opening a device could have side effects.
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

// parseID parses a decimal UID or GID. It accepts only digits, so that "+1" is a name.
func parseID(s string) (int, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	id, err := strconv.Atoi(s)
	return id, err == nil && id <= maxID
}
