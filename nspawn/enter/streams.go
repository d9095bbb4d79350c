package enter

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// drainMax limits how much is copied after the process has exited, because other
// processes may continue to write.
const drainMax = 1 << 20

// endOfTransmission is the character that makes a terminal report the end of its input.
const endOfTransmission = 4

// streams connects the readers and writers of a command with its process.
type streams struct {
	command *Command
	child   []*os.File // stdin, stdout and stderr of the process; empty with TTY
	input   *os.File   // our end of the process's stdin, or the terminal
	outputs []*output
	done    chan struct{} // closed by finish
}

// output copies output of the process.
type output struct {
	from *os.File
	to   io.Writer
	done chan struct{} // closed by copy
}

func openStreams(command *Command) (_ *streams, err error) {
	s := &streams{command: command, done: make(chan struct{})}
	if command.TTY {
		return s, nil
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	stdin, input, err := pipe()
	if err != nil {
		return nil, err
	}
	s.child, s.input = append(s.child, stdin), input
	if err := s.addPipe(command.Stdout); err != nil {
		return nil, err
	}
	if command.Stderr != nil && command.Stderr == command.Stdout {
		s.child = append(s.child, s.child[stdout])
		return s, nil
	}
	if err := s.addPipe(command.Stderr); err != nil {
		return nil, err
	}
	return s, nil
}

// stdout is the index of the process's stdout in streams.child.
const stdout = 1

// addPipe makes the next output of the process.
func (s *streams) addPipe(to io.Writer) error {
	from, file, err := pipe()
	if err != nil {
		return err
	}
	s.child = append(s.child, file)
	s.add(from, to)
	return nil
}

// pipe returns a pipe that every user can open again as /dev/stdin or /dev/stderr. The
// permissions of /proc decide who can reach it there.
func pipe() (r, w *os.File, err error) {
	if r, w, err = os.Pipe(); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	if err := r.Chmod(0o666); err != nil {
		r.Close()
		w.Close()
		return nil, nil, fmt.Errorf("share pipe: %w", err)
	}
	return r, w, nil
}

func (s *streams) add(from *os.File, to io.Writer) {
	if to == nil {
		to = io.Discard
	}
	s.outputs = append(s.outputs, &output{from: from, to: to, done: make(chan struct{})})
}

// started closes the process's ends in the plugin, so that the output ends when the
// process does.
func (s *streams) started() {
	for _, file := range s.child {
		file.Close()
	}
	s.child = nil
}

// attach makes the terminal the process's stdio. close closes it.
func (s *streams) attach(terminal *os.File) {
	s.input = terminal
	s.add(terminal, s.command.Stdout)
}

// start begins to copy.
func (s *streams) start() {
	for _, output := range s.outputs {
		go output.copy()
	}
	go s.copyStdin()
	if s.command.TTY {
		go s.resize()
	}
}

// copyStdin copies the input until it ends or the process stops reading it.
func (s *streams) copyStdin() {
	if s.command.Stdin != nil {
		_, _ = io.Copy(s.input, s.command.Stdin) // EPIPE: the process has closed its stdin
	}
	if s.command.TTY {
		_, _ = s.input.Write([]byte{endOfTransmission})
	} else {
		s.input.Close()
	}
}

func (s *streams) resize() {
	conn, err := s.input.SyscallConn()
	if err != nil {
		return
	}
	for {
		select {
		case size, open := <-s.command.Resize:
			if !open {
				return
			}
			_ = conn.Control(func(fd uintptr) {
				_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
			})
		case <-s.done:
			return
		}
	}
}

// finish copies what the process has written before it exited, and then stops. Later
// output of processes that it has left behind is lost, because waiting for them could
// take forever.
func (s *streams) finish(ctx context.Context) {
	close(s.done)
	for _, output := range s.outputs {
		_ = output.from.SetReadDeadline(time.Now())
	}
	for _, output := range s.outputs {
		select {
		case <-output.done:
			output.drain()
		case <-ctx.Done(): // the writer blocks, and the caller has given up
		}
	}
}

// writeError writes a message where the process would have written it.
func (s *streams) writeError(message string) {
	to, end := s.command.Stderr, "\n"
	if s.command.TTY {
		to, end = s.command.Stdout, "\r\n"
	}
	if to != nil {
		_, _ = io.WriteString(to, message+end)
	}
}

func (s *streams) close() {
	s.started()
	if s.input != nil {
		s.input.Close()
	}
	for _, output := range s.outputs {
		output.from.Close()
	}
}

// copy copies until the output ends, the writer fails, or finish interrupts it.
func (o *output) copy() {
	defer close(o.done)
	buffer := make([]byte, 32<<10)
	for {
		n, err := o.from.Read(buffer)
		if n > 0 {
			if _, err := o.to.Write(buffer[:n]); err != nil {
				o.from.Close() // the process gets SIGPIPE or SIGHUP
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// drain copies everything that can be read without waiting.
func (o *output) drain() {
	conn, err := o.from.SyscallConn()
	if err != nil || o.from.SetReadDeadline(time.Time{}) != nil {
		return
	}
	buffer := make([]byte, 32<<10)
	for total := 0; total < drainMax; {
		n := 0
		err := conn.Read(func(fd uintptr) bool {
			n, _ = unix.Read(int(fd), buffer) // a terminal that no process has open returns EIO
			return true
		})
		if err != nil || n <= 0 {
			return
		}
		if _, err := o.to.Write(buffer[:n]); err != nil {
			return
		}
		total += n
	}
}
