package enter

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/enter/container"
)

// shim is the running shim, head of a process group.
type shim struct {
	pid     int
	replies int      // our end of the socket
	stderr  *os.File // what nsenter or a crash of the shim had to say
}

// startShim runs the shim, by way of nsenter. stdio is empty with
// TTY.
func startShim(l *leader, stdio []*os.File, todo *container.Instructions) (_ *shim, err error) {
	instructions, err := memfd("instructions", 0)
	if err != nil {
		return nil, err
	}
	defer instructions.Close()
	if err := writeJSON(instructions, todo); err != nil {
		return nil, err
	}
	executable, err := shimExecutable()
	if err != nil {
		return nil, err
	}
	defer executable.Close()
	sh, replies, err := newShim()
	if err != nil {
		return nil, err
	}
	defer replies.Close()
	defer func() {
		if err != nil {
			sh.close()
		}
	}()
	if stdio == nil {
		stdio = make([]*os.File, 3)
	}
	cmd, err := l.command()
	if err != nil {
		return nil, err
	}
	files := []*os.File{instructions, replies, l.root, l.mount, l.pidns, stdio[0], stdio[1], stdio[2], executable}
	cmd.ExtraFiles = append(files, cmd.ExtraFiles...)
	cmd.Stderr = sh.stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	sh.pid = cmd.Process.Pid
	_ = cmd.Process.Release() // we wait ourselves, see abandon
	if err := l.raiseLimits(sh.pid); err != nil {
		sh.abandon()
		return nil, err
	}
	return sh, nil
}

func newShim() (_ *shim, replies *os.File, err error) {
	stderr, err := memfd("stderr", 0)
	if err != nil {
		return nil, nil, err
	}
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		stderr.Close()
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	return &shim{replies: ends[0], stderr: stderr}, os.NewFile(uintptr(ends[1]), "replies"), nil
}

// command is nsenter's, to run the shim in its place among the cgroups and in those of
// its namespaces that a thread of the shim cannot join.
func (l *leader) command() (*exec.Cmd, error) {
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return nil, fmt.Errorf("find nsenter (install util-linux): %w", err)
	}
	cmd := exec.Command(nsenter)
	for n, join := range l.joins {
		cmd.Args = append(cmd.Args, fmt.Sprintf("--%s=/proc/self/fd/%d", join.option, container.FDJoins+n))
		cmd.ExtraFiles = append(cmd.ExtraFiles, join.file)
	}
	cmd.Args = append(cmd.Args, "--", fmt.Sprintf("/proc/self/fd/%d", container.FDExecutable), container.EnterArg)
	cmd.Dir = "/"
	// Nothing of our environment, which may be secret. Few threads and no
	// garbage collection save the shim a quarter of its start.
	cmd.Env = []string{"GOMAXPROCS=1", "GOGC=off"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid: true,
		// Later, as the container's root, it may not choose its cgroup.
		UseCgroupFD: true,
		CgroupFD:    int(l.group.Fd()),
	}
	return cmd, nil
}

func memfd(name string, flags int) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|flags)
	if err != nil {
		return nil, fmt.Errorf("make memory file: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// writeJSON writes a value and goes back to the beginning.
func writeJSON(file *os.File, value any) error {
	if err := json.NewEncoder(file).Encode(value); err != nil {
		return fmt.Errorf("write %s: %w", file.Name(), err)
	}
	_, err := file.Seek(0, io.SeekStart)
	return err
}

// receive waits for a reply. It is empty when the shim has no more to tell.
func (s *shim) receive() (r container.Reply, terminal *os.File, err error) {
	message := make([]byte, 64<<10)
	rights := make([]byte, unix.CmsgSpace(4))
	var n, nrights int
	for {
		n, nrights, _, _, err = unix.Recvmsg(s.replies, message, rights, unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return r, nil, fmt.Errorf("receive reply: %w", err)
	}
	if n == 0 {
		return r, nil, nil
	}
	if nrights > 0 {
		if terminal, err = receivedFile(rights[:nrights]); err != nil {
			return r, nil, err
		}
	}
	if err := json.Unmarshal(message[:n], &r); err != nil {
		return r, terminal, fmt.Errorf("parse reply: %w", err)
	}
	if r.Error != "" {
		err = errors.New(r.Error)
	}
	return r, terminal, err
}

// receivedFile returns the one descriptor that came with a reply.
func receivedFile(rights []byte) (*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	var fds []int
	for _, message := range messages {
		more, err := unix.ParseUnixRights(&message)
		if err != nil {
			return nil, fmt.Errorf("receive terminal: %w", err)
		}
		fds = append(fds, more...)
	}
	if len(fds) != 1 {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("receive terminal: %d descriptors came, not 1", len(fds))
	}
	// Only a nonblocking descriptor gets read deadlines from package os.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

func (s *shim) kill() { _ = unix.Kill(-s.pid, unix.SIGKILL) }

// reap waits for the end of the shim.
func (s *shim) reap() unix.WaitStatus { return reap(s.pid) }

// abandon ends the shim and a process it may have made but not told about,
// which is in its group until told to go on.
func (s *shim) abandon() unix.WaitStatus {
	s.kill()
	status := s.reap()
	reap(-s.pid)
	return status
}

// reap waits for a child or, by a negative number, one of a process group.
func reap(pid int) (status unix.WaitStatus) {
	for {
		if _, err := unix.Wait4(pid, &status, 0, nil); !errors.Is(err, unix.EINTR) {
			return status
		}
	}
}

// explain says what is known of a shim that has ended without a reply.
func (s *shim) explain(status unix.WaitStatus) error {
	said := make([]byte, 4096)
	n, _ := s.stderr.ReadAt(said, 0)
	switch {
	case n > 0:
		return fmt.Errorf("run shim: %s", strings.TrimSpace(string(said[:n])))
	case status.Signaled():
		return fmt.Errorf("run shim: ended by signal %d", status.Signal())
	default:
		return fmt.Errorf("run shim: exit code %d", status.ExitStatus())
	}
}

func (s *shim) close() {
	unix.Close(s.replies)
	s.stderr.Close()
}
