package nspawn

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/process"
	"nomad-driver-nspawn/nspawn/thread"
)

// setSysctls sets parameters of the kernel in the machine's network and IPC namespaces. It
// uses the host's /proc/sys, where a thread sees the parameters of the namespaces that it is
// in, and no path of the machine.
func (w Waiting) setSysctls(values map[string]string) error {
	names := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if err := machine.CheckSysctl(name, values[name]); err != nil {
			return err
		}
		kind := machine.SysctlNamespace(name)
		names[kind] = append(names[kind], name)
	}
	for _, kind := range slices.Sorted(maps.Keys(names)) {
		if err := w.setSysctlsOf(kind, names[kind], values); err != nil {
			return fmt.Errorf("set parameters of the kernel: %w", err)
		}
	}
	return nil
}

// setSysctlsOf sets the parameters of one namespace.
func (w Waiting) setSysctlsOf(kind string, names []string, values map[string]string) error {
	root, err := process.Process{PID: w.Leader}.RootUID()
	if err != nil {
		return err
	}
	namespace, err := w.openNamespace(kind)
	if err != nil {
		return err
	}
	defer namespace.Close()
	if isHosts, err := isHostNamespace(namespace, kind); err != nil || isHosts {
		return cmp.Or(err, fmt.Errorf("%s: the machine has no %s namespace of its own", names[0], kind))
	}
	return thread.Run(func() error {
		if err := unix.Setns(int(namespace.Fd()), 0); err != nil {
			return fmt.Errorf("join %s namespace: %w", kind, err)
		}
		var errs []error
		for _, name := range names {
			if err := setSysctl(name, values[name], root); err != nil {
				errs = append(errs, fmt.Errorf("sysctl.%s = %q: %w", name, values[name], err))
			}
		}
		return errors.Join(errs...)
	})
}

// isHostNamespace reports whether a namespace is the plugin's own.
func isHostNamespace(namespace *os.File, kind string) (bool, error) {
	its, err := namespace.Stat()
	if err != nil {
		return false, err
	}
	own, err := os.Stat("/proc/self/ns/" + kind)
	return err == nil && os.SameFile(its, own), err
}

// setSysctl sets a parameter in the namespaces of the thread, and reads it again. root is the
// UID of the machine's root.
//
// Since Linux 6.9, parameters of IPC can only be written by root of the user namespace that
// owns the IPC namespace, and not by the host's root; before that, it is the other way round.
func setSysctl(name, value string, root int) error {
	path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
	value = onHost(name, value, root)
	err := writeSysctl(path, value)
	isIPC := machine.SysctlNamespace(name) == machine.IPCNamespace
	if errors.Is(err, os.ErrPermission) && isIPC && root != 0 {
		if err := actAs(root); err != nil {
			return err
		}
		err = writeSysctl(path, value)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return errors.New("the kernel has no such parameter for a container, or not in a user namespace")
	case errors.Is(err, os.ErrPermission):
		return errors.New("the kernel does not let a container have a value of its own")
	case errors.Is(err, unix.EINVAL):
		return errors.New("the kernel does not accept the value")
	case err != nil:
		return err
	}
	got, err := readSysctl(path)
	if err == nil && !slices.Equal(strings.Fields(got), strings.Fields(value)) {
		err = fmt.Errorf("the kernel has made %q of it", strings.TrimSpace(got))
	}
	return err
}

// pingGroups is the parameter whose value is a range of groups.
const pingGroups = "net.ipv4.ping_group_range"

// onHost returns a value as the host's root writes it. The kernel takes groups for those of
// the user namespace of whoever writes. A range of more groups than the machine has is
// everybody's, and one that ends before it begins is nobody's.
func onHost(name, value string, root int) string {
	fields := strings.Fields(value)
	if name != pingGroups || root == 0 || len(fields) != 2 {
		return value
	}
	first, err1 := strconv.Atoi(fields[0])
	last, err2 := strconv.Atoi(fields[1])
	if err1 != nil || err2 != nil || last < first || last >= idmap.RangeSize {
		return value
	}
	return fmt.Sprint(root+first, " ", root+last)
}

// writeSysctl writes in one call: the kernel takes each for a whole value.
func writeSysctl(path, value string) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0) // creates nothing
	if err != nil {
		return err
	}
	_, err = file.WriteString(value)
	return errors.Join(err, file.Close())
}

func readSysctl(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	const most = 4096 // many times what a value that was accepted has
	text, err := io.ReadAll(io.LimitReader(file, most))
	return string(text), err
}

// actAs gives the calling thread, and no other, the effective UID of a machine's root. The
// real and saved UIDs stay the host's root's, so that no process of the machine can signal
// the plugin.
func actAs(uid int) error {
	const same = ^uintptr(0)
	// A thread that changes its UID makes the whole process one that is not dumped.
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		return fmt.Errorf("act as user %d: %w", uid, err)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, uintptr(uid), same); errno != 0 {
		return fmt.Errorf("act as user %d: %w", uid, errno)
	}
	if dumpable != 1 {
		return nil
	}
	return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
}

// openNamespace opens a namespace of the machine's leader. Afterwards it checks that the
// leader is still the same process.
func (w Waiting) openNamespace(kind string) (*os.File, error) {
	namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", w.Leader, kind))
	if err != nil {
		return nil, fmt.Errorf("open %s namespace of process %d: %w", kind, w.Leader, err)
	}
	now, err := process.Process{PID: w.Leader}.Identity()
	if err == nil && now != w.identity {
		err = fmt.Errorf("leader %d of the machine has ended", w.Leader)
	}
	if err != nil {
		return nil, errors.Join(err, namespace.Close())
	}
	return namespace, nil
}
