package enter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/enter/container"
)

// leader is a machine's PID 1 with open files that continue to refer to this process,
// whatever happens to its PID.
type leader struct {
	pid         int
	cgroupDir   string // cgroup of the leader
	delegated   string
	group       *group // cgroup of the command
	root        *os.File
	mount       *os.File // namespaces that the shim joins
	pidns       *os.File
	joins       []join // namespaces that nsenter joins
	confinement container.Confinement
}

// join is a namespace to join, with nsenter's option for it.
type join struct {
	option string
	file   *os.File
}

// resources is the number of resource limits of getrlimit(2), RLIMIT_CPU to
// RLIMIT_RTTIME.
const resources = 16

func openLeader(ctx context.Context, target Target) (*leader, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, setupTimeout, errSetup)
	defer cancel()
	l := &leader{pid: target.Leader, cgroupDir: target.Cgroup, delegated: target.Delegated}
	err := waitComplete(ctx, l.pid)
	if err == nil {
		err = l.open()
	}
	if err == nil {
		l.confinement, err = readConfinement(ctx, l.pid)
	}
	if err == nil {
		err = l.verify()
	}
	if err != nil {
		l.close()
		return nil, fmt.Errorf("open leader %d: %w", target.Leader, err)
	}
	return l, nil
}

func (l *leader) open() (err error) {
	proc := fmt.Sprintf("/proc/%d/", l.pid)
	if l.group, err = makeGroup(l.delegated); err != nil {
		return err
	}
	if l.root, err = openPath(proc + "root"); err != nil {
		return err
	}
	if l.mount, err = os.Open(proc + "ns/mnt"); err != nil {
		return err
	}
	if l.pidns, err = os.Open(proc + "ns/pid"); err != nil {
		return err
	}
	options := []string{"net", "uts", "ipc", "cgroup"}
	if !sameFile("/proc/self/ns/user", proc+"ns/user") {
		options = append(options, "user") // joining one's own user namespace fails with EINVAL
	}
	for _, option := range options {
		file, err := os.Open(proc + "ns/" + option)
		if err != nil {
			return err
		}
		l.joins = append(l.joins, join{option, file})
	}
	return nil
}

// verify checks that everything that was opened and read belongs to the right machine. It
// comes last: a PID is not reused while its process lives, so a process that is the right
// one now has been so all the time.
func (l *leader) verify() error {
	members, err := os.ReadFile(filepath.Join(l.cgroupDir, "cgroup.procs"))
	if err != nil {
		return err
	}
	if !slices.Contains(strings.Fields(string(members)), strconv.Itoa(l.pid)) {
		return fmt.Errorf("not in cgroup %s: %w", l.cgroupDir, ErrMoved)
	}
	return nil
}

func (l *leader) close() {
	if l.group != nil {
		l.group.remove()
	}
	files := []*os.File{l.root, l.mount, l.pidns}
	for _, join := range l.joins {
		files = append(files, join.file)
	}
	for _, file := range files {
		if file != nil {
			file.Close()
		}
	}
}

// readConfinement determines how the leader is confined.
func readConfinement(ctx context.Context, pid int) (c container.Confinement, err error) {
	status, err := readStatus(pid)
	if err != nil {
		return c, err
	}
	if c.Bounding, err = strconv.ParseUint(status["CapBnd"], 16, 64); err != nil {
		return c, fmt.Errorf("parse capability bounding set: %w", err)
	}
	c.NoNewPrivs = status["NoNewPrivs"] == "1"
	for resource := range resources {
		l := container.Limit{Resource: resource}
		if err := unix.Prlimit(pid, resource, nil, &l.Value); err != nil {
			return c, fmt.Errorf("read resource limit %d: %w", resource, err)
		}
		c.Limits = append(c.Limits, l)
	}
	switch status["Seccomp"] {
	case "0":
		return c, nil
	case strconv.Itoa(unix.SECCOMP_MODE_FILTER):
		c.Filters, err = seccompFilters(ctx, pid)
		return c, err
	default:
		return c, fmt.Errorf("copy seccomp mode %q: unknown mode", status["Seccomp"])
	}
}

// setupInterval is the time between two looks at an incomplete leader. Setting it up
// takes about 10 ms, once per machine, and no event reports its end.
const setupInterval = time.Millisecond

// waitComplete waits until systemd-nspawn has set up the leader. READY=1 arrives before
// the leader has dropped capabilities and installed seccomp filters. A process with a
// copy of that earlier state would be less confined than the payload.
func waitComplete(ctx context.Context, pid int) error {
	for {
		complete, err := IsComplete(pid)
		if complete || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for systemd-nspawn to set it up: %w", context.Cause(ctx))
		case <-time.After(setupInterval):
		}
	}
}

// IsComplete reports whether a machine's leader is set up. Either it has executed the
// payload, and then runs another program than its parent, or it is the stub init, which
// sets its name last (systemd 219 to 262, stub_pid1).
func IsComplete(pid int) (bool, error) {
	status, err := readStatus(pid)
	if err != nil {
		return false, err
	}
	namespaces := strings.Fields(status["NSpid"])
	if len(namespaces) < 2 || namespaces[len(namespaces)-1] != "1" {
		return false, errors.New("not PID 1 of a namespace of its own")
	}
	if status["Name"] == "(sd-stubinit)" {
		return true, nil
	}
	own, err := identify(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return false, err
	}
	parent, err := identify("/proc/" + status["PPid"] + "/exe")
	if err != nil {
		return false, err
	}
	return own != parent, nil
}

// fileID identifies a file on this host.
type fileID struct {
	major, minor uint32
	inode        uint64
}

// identify returns the identity of a file without a request to its file system, which may
// be a FUSE of the container that never answers.
func identify(path string) (fileID, error) {
	var stat unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, 0, &stat); err != nil {
		return fileID{}, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	return fileID{stat.Dev_major, stat.Dev_minor, stat.Ino}, nil
}

func readStatus(pid int) (map[string]string, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	return parseStatus(string(content)), nil
}

// parseStatus reads /proc/PID/status (proc_pid_status(5)). A process may name itself as it
// likes, but the kernel escapes line feeds in the name.
func parseStatus(content string) map[string]string {
	status := make(map[string]string)
	for line := range strings.Lines(content) {
		key, value, _ := strings.Cut(line, ":")
		status[key] = strings.TrimSpace(value)
	}
	return status
}

func openPath(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func sameFile(a, b string) bool {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

// raiseLimits gives the shim the leader's hard limits and OOM score, which only a host
// process may raise. If we are not permitted to, the process gets lower limits than the
// leader, which does no harm.
func (l *leader) raiseLimits(pid int) error {
	for _, want := range l.confinement.Limits {
		var now unix.Rlimit
		if err := unix.Prlimit(pid, want.Resource, nil, &now); err != nil {
			return fmt.Errorf("read resource limit %d: %w", want.Resource, err)
		}
		if now.Max >= want.Value.Max {
			continue
		}
		now.Max = want.Value.Max
		if err := unix.Prlimit(pid, want.Resource, &now, nil); err != nil && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("raise resource limit %d: %w", want.Resource, err)
		}
	}
	score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", l.pid))
	if err != nil {
		return err
	}
	err = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), score, 0)
	if errors.Is(err, unix.EACCES) {
		return nil
	}
	return err
}
