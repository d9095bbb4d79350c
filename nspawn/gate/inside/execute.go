package inside

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/enter/user"
)

// inits are the programs that systemd-nspawn --boot tries, in the same order (nspawn.c,
// inner_child).
var inits = []string{"/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/sbin/init"}

// execute replaces the shim by what the instructions ask for. It returns only if that fails.
func (todo *Instructions) execute() *Failure {
	if todo.Init {
		return todo.executeInit()
	}
	if len(todo.Argv) == 0 || todo.Argv[0] == "" {
		return refuse("no command was given")
	}
	identity, err := user.Lookup("/", todo.User)
	if err != nil {
		return refuse("%v", err)
	}
	dir := path.Join("/", todo.Dir)
	if err := makeDir(dir, identity); err != nil {
		return refuse("make the working directory %s: %v", dir, err)
	}
	if err := setIdentity(identity); err != nil {
		return refuse("run as user %q: %v", todo.User, err)
	}
	if err := os.Chdir(dir); err != nil {
		return refuse("change to the working directory as user %q: %v", todo.User, err)
	}
	env := identity.Environment(merge(without(os.Environ(), "HOME", "USER", "LOGNAME", cpusVariable), todo.Env))
	files := candidates(todo.Argv[0], env)
	return explain(todo.Argv[0], files, execFirst(files, todo.Argv, env), env)
}

// executeInit executes the image's init with its path as the first argument.
func (todo *Instructions) executeInit() *Failure {
	env := merge(without(os.Environ(), cpusVariable), todo.Env)
	errno := unix.ENOENT
	for _, file := range inits {
		argv := append([]string{file}, todo.Argv...)
		if errno = execFirst([]string{file}, argv, env); errno != unix.ENOENT && errno != unix.ENOTDIR {
			return explain(file, []string{file}, errno, env)
		}
	}
	return explain("init", inits, errno, env)
}

// execFirst tries to execute the files in order, and returns why none of them could be. As
// in execvp(3), a file without permission to execute does not end the search.
func execFirst(files, argv, env []string) unix.Errno {
	failed := unix.ENOENT
	for _, file := range files {
		var errno unix.Errno
		if err := syscall.Exec(file, argv, env); !errors.As(err, &errno) { // Exec also restores RLIMIT_NOFILE
			errno = unix.EINVAL // a string contains a NUL
		}
		switch errno {
		case unix.ENOENT, unix.ENOTDIR:
		case unix.EACCES:
			failed = errno
		default:
			return errno
		}
	}
	return failed
}

// candidates returns the files that a command may refer to, in the order of PATH.
func candidates(command string, env []string) (files []string) {
	if strings.Contains(command, "/") {
		return []string{command}
	}
	list, _ := user.LookupEnv(env, "PATH")
	for dir := range strings.SplitSeq(list, ":") {
		if dir != "" { // an empty entry would mean the working directory; it is ignored
			files = append(files, path.Join(dir, command))
		}
	}
	return files
}

// makeDir creates a directory and its missing parents, all owned by the user.
func makeDir(dir string, identity user.Identity) error {
	for end := range len(dir) + 1 {
		if end < 2 || end < len(dir) && dir[end] != '/' {
			continue
		}
		err := os.Mkdir(dir[:end], 0o755)
		if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.EROFS) && exists(dir[:end]) {
			continue
		}
		if err != nil {
			return err
		}
		if err := errors.Join(os.Lchown(dir[:end], identity.UID, identity.GID), os.Chmod(dir[:end], 0o755)); err != nil {
			return err
		}
	}
	return nil
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// setIdentity changes the calling thread, which is the one that executes the command, to the
// user. Package syscall would change all threads by means of signals, which the shim does
// not handle.
func setIdentity(identity user.Identity) error {
	if err := setGroups(identity.Groups); err != nil {
		return fmt.Errorf("set groups %v: %w", identity.Groups, err)
	}
	gid, uid := uintptr(identity.GID), uintptr(identity.UID)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return fmt.Errorf("set GID %d (is it outside of the container's range?): %w", identity.GID, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return fmt.Errorf("set UID %d (is it outside of the container's range?): %w", identity.UID, errno)
	}
	return nil
}

// setGroups does nothing if the groups are set already, because root may not be
// permitted to set them.
func setGroups(gids []int) error {
	if now, err := unix.Getgroups(); err == nil && slices.Equal(now, gids) {
		return nil
	}
	groups := make([]uint32, len(gids))
	for i, gid := range gids {
		groups[i] = uint32(gid)
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// merge adds variables to an environment. They replace variables of the same name.
func merge(env, more []string) []string {
	var names []string
	for _, variable := range more {
		name, _, _ := strings.Cut(variable, "=")
		names = append(names, name)
	}
	return append(without(env, names...), more...)
}

// without returns the environment without the variables of the given names.
func without(env []string, names ...string) (rest []string) {
	drop := map[string]bool{}
	for _, name := range names {
		drop[name] = true
	}
	for _, variable := range env {
		if name, _, _ := strings.Cut(variable, "="); !drop[name] {
			rest = append(rest, variable)
		}
	}
	return rest
}
