package enter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/enter/container"
)

// shim is a running shim. It is in a session that was created for its starter.
type shim struct {
	child
	session int           // session and process group, until the forked process has a session of its own
	socket  *net.UnixConn // receives the shim's replies
	stderr  *os.File      // messages of nsenter, or of a crash of the shim
}

// startShim runs the shim by way of nsenter. stdio is empty with TTY.
func startShim(ctx context.Context, l *leader, stdio []*os.File, todo *container.Instructions) (_ *shim, err error) {
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
	argv, err := l.command()
	if err != nil {
		return nil, err
	}
	// The program starts in our own cgroup, and starts the shim in the command's cgroup.
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	// Our own environment may contain secrets. Fewer threads and no garbage collection
	// shorten the start of the shim by a quarter.
	cmd.Env = []string{"GOMAXPROCS=1", "GOGC=off"}
	// A session of its own: the forked process must not be in the session of the agent,
	// whose terminal it could open as /dev/tty.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = sh.stderr
	cmd.ExtraFiles = []*os.File{
		instructions, replies, l.root, l.mount, l.pidns, stdio[0], stdio[1], stdio[2], l.group.dir, executable,
	}
	for _, join := range l.joins {
		cmd.ExtraFiles = append(cmd.ExtraFiles, join.file)
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	sh.session = cmd.Process.Pid
	_ = cmd.Process.Release() // we wait for it ourselves, see begin and abandon
	replies.Close()           // otherwise there would be no end of file
	if err := sh.begin(ctx, l); err != nil {
		return nil, sh.abandon(ctx, err)
	}
	return sh, nil
}

// begin lets the starter start the shim, after raising the limits that only the host can
// raise.
func (s *shim) begin(ctx context.Context, l *leader) error {
	if err := l.raiseLimits(s.session); err != nil {
		return err
	}
	if err := s.allow(); err != nil {
		return err
	}
	release := guard(ctx, s.kill)
	first, _, err := s.receive()
	release()
	if err != nil {
		return err
	}
	if first.Pid == 0 {
		return errNoReply
	}
	starter, err := openChild(s.session)
	if err != nil {
		return err
	}
	defer starter.close()
	if err := starter.await(ctx); err != nil {
		return err
	}
	if _, err := starter.reap(); err != nil {
		return err
	}
	if s.child, err = openChild(first.Pid); err != nil {
		return err
	}
	return s.allow() // the shim waits for this, so that the reply of its starter comes first
}

// allow tells the shim, or its starter, to continue.
func (s *shim) allow() error {
	if _, err := s.socket.Write([]byte{1}); err != nil {
		return fmt.Errorf("tell the shim to continue: %w", err)
	}
	return nil
}

// errNoReply means that the shim has ended without a reply.
var errNoReply = errors.New("no reply")

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

// socketPair returns our end, whose reads can have a deadline, and the shim's end.
func socketPair() (*net.UnixConn, *os.File, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	own, other := os.NewFile(uintptr(ends[0]), "shim"), os.NewFile(uintptr(ends[1]), "replies")
	defer own.Close()
	conn, err := net.FileConn(own) // FileConn duplicates the descriptor
	if err != nil {
		other.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), other, nil
}

// command returns the command line of the program that starts nsenter in the command's
// cgroup. nsenter joins the leader's namespaces that a thread of the shim cannot join,
// and then runs the shim.
func (l *leader) command() ([]string, error) {
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return nil, fmt.Errorf("find nsenter (install util-linux): %w", err)
	}
	self := fmt.Sprintf("/proc/self/fd/%d", container.FDExecutable)
	argv := []string{self, container.PlaceArg, nsenter}
	for n, join := range l.joins {
		argv = append(argv, fmt.Sprintf("--%s=/proc/self/fd/%d", join.option, container.FDJoins+n))
	}
	return append(argv, "--", self, container.EnterArg), nil
}

func memfd(name string, flags int) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|flags)
	if err != nil {
		return nil, fmt.Errorf("make memory file: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// writeJSON writes a value and seeks to the beginning.
func writeJSON(file *os.File, value any) error {
	if err := json.NewEncoder(file).Encode(value); err != nil {
		return fmt.Errorf("write %s: %w", file.Name(), err)
	}
	_, err := file.Seek(0, io.SeekStart)
	return err
}

// receive waits for a reply. The reply is empty if the shim has closed the connection.
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

// receivedFile returns the descriptor that came with a reply.
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
		return nil, fmt.Errorf("receive terminal: got %d descriptors instead of 1", len(fds))
	}
	// Package os supports read deadlines only on nonblocking descriptors.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

// kill ends the shim, and soon the wait for its reply as well: the shim may hang in the
// container's files, where a signal does not end it.
func (s *shim) kill() {
	s.killGroup()
	_ = s.socket.SetReadDeadline(time.Now().Add(endTimeout))
}

// killGroup kills the shim and all processes in its process group.
func (s *shim) killGroup() { _ = unix.Kill(-s.session, unix.SIGKILL) }

// abandon ends the shim, and a process that it may have forked but not reported: until it
// is told to continue, that process is in the shim's process group. abandon returns
// cause, or a better explanation.
func (s *shim) abandon(ctx context.Context, cause error) error {
	s.killGroup()
	last, err := reapGroup(s.session)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	case errors.Is(cause, errNoReply):
		return s.explain(last)
	default:
		return cause
	}
}

// explain returns the known reason why a shim has ended without a reply.
func (s *shim) explain(status unix.WaitStatus) error {
	output := make([]byte, 4096)
	n, _ := s.stderr.ReadAt(output, 0)
	switch {
	case n > 0:
		return fmt.Errorf("run shim: %s", strings.TrimSpace(string(output[:n])))
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
