package container

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/enter/user"
)

// Static reports whether the running executable needs no dynamic linker and so
// can be run in any image.
func Static() (bool, error) {
	file, err := elf.Open("/proc/self/exe")
	if err != nil {
		return false, fmt.Errorf("read own executable: %w", err)
	}
	defer file.Close()
	for _, program := range file.Progs {
		if program.Type == elf.PT_INTERP {
			return false, nil
		}
	}
	return true, nil
}

// userMain runs "USER -- COMMAND ARGUMENT…" in place of this process.
func userMain(args []string) {
	code, err := execAs(args)
	fmt.Fprintln(os.Stderr, err)
	os.Exit(code)
}

// withoutRoot drops what systemd-nspawn says of the user that it starts the
// command as, root, so that the user's own takes its place.
func withoutRoot(env []string) []string {
	return slices.DeleteFunc(env, func(variable string) bool {
		return variable == "HOME=/root" || variable == "USER=root" || variable == "LOGNAME=root"
	})
}

// execAs returns only if it has failed, with the exit code to report.
func execAs(args []string) (int, error) {
	if len(args) < 3 || args[1] != "--" {
		return exitNotExecutable, fmt.Errorf("usage: %s USER -- COMMAND [ARGUMENT…]", UserArg)
	}
	argv := args[2:]
	who, err := user.Lookup("/", args[0])
	if err != nil {
		return exitNotExecutable, err
	}
	env := who.Environment(withoutRoot(os.Environ()))
	if err := syscall.Setgroups(who.Groups); err != nil {
		return exitNotExecutable, fmt.Errorf("set groups of user %q: %w", args[0], err)
	}
	if err := syscall.Setresgid(who.GID, who.GID, who.GID); err != nil {
		return exitNotExecutable, fmt.Errorf("set gid %d: %w", who.GID, err)
	}
	if err := syscall.Setresuid(who.UID, who.UID, who.UID); err != nil {
		return exitNotExecutable, fmt.Errorf("set uid %d: %w", who.UID, err)
	}
	failed := unix.ENOENT
	for _, file := range candidates(argv[0], env) {
		err := syscall.Exec(file, argv, env) // also restores RLIMIT_NOFILE
		if errors.Is(err, unix.EACCES) {
			failed = unix.EACCES
		} else if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
			errors.As(err, &failed)
			break
		}
	}
	r := failure(argv[0], failed)
	return r.Code, errors.New(r.Failure)
}
