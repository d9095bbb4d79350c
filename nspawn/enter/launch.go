package enter

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/enter/container"
)

// shim is the running shim, head of a session.
type shim struct {
	child
	socket *net.UnixConn // where its replies come from
	stderr *os.File      // what nsenter or a crash of the shim had to say
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
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	argv, err := l.command()
	if err != nil {
		return nil, err
	}
	files := []*os.File{
		null, null, sh.stderr,
		instructions, replies, l.root, l.mount, l.pidns, stdio[0], stdio[1], stdio[2], executable,
	}
	for _, join := range l.joins {
		files = append(files, join.file)
	}
	// Nothing of our environment, which may be secret. Few threads and no
	// garbage collection save the shim a quarter of its start.
	if sh.child, err = startIn(l.group.dir, argv, []string{"GOMAXPROCS=1", "GOGC=off"}, files); err != nil {
		return nil, err
	}
	if err = l.raiseLimits(sh.pid); err != nil {
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
	socket, replies, err := socketPair()
	if err != nil {
		stderr.Close()
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	return &shim{socket: socket, stderr: stderr}, replies, nil
}

// socketPair returns our end, whose reads can have a deadline, and the shim's.
func socketPair() (*net.UnixConn, *os.File, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	own, other := os.NewFile(uintptr(ends[0]), "shim"), os.NewFile(uintptr(ends[1]), "replies")
	defer own.Close()
	conn, err := net.FileConn(own) // duplicates it
	if err != nil {
		other.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), other, nil
}

// command returns the arguments of nsenter, which runs the shim in those of the
// leader's namespaces that a thread of the shim cannot join.
func (l *leader) command() ([]string, error) {
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return nil, fmt.Errorf("find nsenter (install util-linux): %w", err)
	}
	argv := []string{nsenter}
	for n, join := range l.joins {
		argv = append(argv, fmt.Sprintf("--%s=/proc/self/fd/%d", join.option, container.FDJoins+n))
	}
	return append(argv, "--", fmt.Sprintf("/proc/self/fd/%d", container.FDExecutable), container.EnterArg), nil
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
	n, nrights, _, _, err := s.socket.ReadMsgUnix(message, rights) // close-on-exec
	if errors.Is(err, io.EOF) {
		return r, nil, nil
	}
	if err != nil {
		return r, nil, fmt.Errorf("receive reply: %w", err)
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

// kill ends the shim, and soon the wait for its reply: it may hang in the container's
// files, where a signal does not end it.
func (s *shim) kill() {
	s.killGroup()
	_ = s.socket.SetReadDeadline(time.Now().Add(endTimeout))
}

// killGroup kills the shim and what is in its process group. In a frozen cgroup it is
// not even the head of one yet.
func (s *shim) killGroup() {
	_ = unix.Kill(s.pid, unix.SIGKILL)
	_ = unix.Kill(-s.pid, unix.SIGKILL)
}

// abandon ends the shim and a process that it may have forked but not reported,
// which is in its process group until it is told to go on.
func (s *shim) abandon() (unix.WaitStatus, error) {
	s.killGroup()
	status, err := s.reap()
	reapLater(-s.pid)
	return status, err
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
	s.socket.Close()
	s.stderr.Close()
	s.child.close()
}
