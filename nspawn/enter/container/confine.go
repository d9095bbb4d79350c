package container

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/enter/user"
)

// confine confines the calling thread like the leader, and sets the user. Package syscall
// would change all threads; these calls change only this one.
func (todo *Instructions) confine(identity user.Identity) error {
	c := &todo.Confinement
	if err := applyLimits(c.Limits); err != nil {
		return err
	}
	if _, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0); err != nil && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("leave the host's keyring: %w", err)
	}
	if err := dropBounding(c.Bounding); err != nil {
		return err
	}
	if c.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("set no_new_privs: %w", err)
		}
	}
	// Without no_new_privs, installing filters needs CAP_SYS_ADMIN.
	var last uint64
	if len(c.Filters) > 0 && !c.NoNewPrivs {
		last = 1 << unix.CAP_SYS_ADMIN
	}
	if err := setIdentity(identity); err != nil {
		return err
	}
	caps := uint64(0)
	if identity.UID == 0 {
		caps = c.Bounding
	}
	if err := setCapabilities(caps | last); err != nil {
		return err
	}
	if dir := todo.Dir; dir != "" {
		if err := unix.Chdir(dir); err != nil {
			return fmt.Errorf("change to directory %s: %w", dir, err)
		}
	}
	if err := installFilters(c.Filters); err != nil {
		return err
	}
	if c.Bounding&last == last {
		return nil // the container has this capability, and execve(2) drops it unless the user is root
	}
	return setCapabilities(caps)
}

// applyLimits sets limits as close to the leader's as possible. Raising a hard limit
// needs CAP_SYS_RESOURCE on the host (see leader.raiseLimits in package enter).
func applyLimits(limits []Limit) error {
	for _, want := range limits {
		var now unix.Rlimit
		if err := unix.Prlimit(0, want.Resource, nil, &now); err != nil {
			return fmt.Errorf("read resource limit %d: %w", want.Resource, err)
		}
		now.Max = min(now.Max, want.Value.Max)
		now.Cur = min(now.Max, want.Value.Cur)
		if err := unix.Prlimit(0, want.Resource, &now, nil); err != nil {
			return fmt.Errorf("set resource limit %d: %w", want.Resource, err)
		}
	}
	return nil
}

func dropBounding(keep uint64) error {
	for n := range uintptr(64) {
		if keep&(1<<n) != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, n, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil // n is beyond the last capability of this kernel
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", n, err)
		}
	}
	return nil
}

// setIdentity changes the user. The thread keeps its permitted capabilities for the next
// steps.
func setIdentity(identity user.Identity) error {
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	groups := make([]uint32, len(identity.Groups))
	for n, gid := range identity.Groups {
		groups[n] = uint32(gid)
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0)
	if errno != 0 {
		return fmt.Errorf("set groups: %w", errno)
	}
	gid, uid := uintptr(identity.GID), uintptr(identity.UID)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return fmt.Errorf("set gid %d (outside of the container's range?): %w", gid, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return fmt.Errorf("set uid %d (outside of the container's range?): %w", uid, errno)
	}
	return nil
}

// setCapabilities sets the permitted and effective capabilities, and clears the
// inheritable and thereby the ambient ones.
func setCapabilities(caps uint64) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	low, high := uint32(caps), uint32(caps>>32)
	data := [2]unix.CapUserData{{Effective: low, Permitted: low}, {Effective: high, Permitted: high}}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	return nil
}

// installFilters installs the filters for the calling thread. That needs no_new_privs or
// CAP_SYS_ADMIN.
func installFilters(filters [][]byte) error {
	for _, filter := range filters {
		program := unix.SockFprog{
			Len:    uint16(len(filter) / unix.SizeofSockFilter),
			Filter: (*unix.SockFilter)(unsafe.Pointer(unsafe.SliceData(filter))),
		}
		_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&program)))
		runtime.KeepAlive(filter)
		if errno != 0 {
			return fmt.Errorf("install seccomp filter: %w", errno)
		}
	}
	return nil
}
