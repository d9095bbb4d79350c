package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// plan is what the caller sends to a supervisor through its control pipe.
type plan struct {
	Name, Suite string
	Root        string // cached root
	Base        string // where the host's files go
	Binds       []Bind
	LAN         string
}

// report is what a supervisor sends to the caller: once when the host is up or has failed,
// and once more at the end if something went wrong.
type report struct {
	Record *record `json:",omitempty"`
	Error  string  `json:",omitempty"`
}

// detachWord on the control pipe lets the host outlive the caller.
const detachWord = "detach"

// bootPatience is ten times the duration of a boot on a slow, busy machine.
const bootPatience = 90 * time.Second

func superviseMain([]string) int {
	// Only SIGTERM and the control pipe end a supervisor.
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	reports := json.NewEncoder(os.NewFile(4, "report"))
	if err := supervise(os.NewFile(3, "control"), reports); err != nil {
		_ = reports.Encode(report{Error: err.Error()})
		return 1
	}
	return 0
}

// supervise makes a host, keeps it until it is told to end, and removes it.
func supervise(control io.Reader, reports *json.Encoder) (err error) {
	lines := json.NewDecoder(control)
	p := plan{}
	if err := lines.Decode(&p); err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	r, alive, err := claim(p.Name, p.Suite, p.Base, p.LAN)
	if err != nil {
		return err
	}
	defer runtime.KeepAlive(alive) // the lock is held until the process ends
	defer func() { err = errors.Join(err, r.end()) }()

	end, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	go func() {
		var word string
		for lines.Decode(&word) == nil {
			if word == detachWord {
				return
			}
		}
		cancel() // the caller closed the pipe, or died
	}()

	leader, err := r.start(end, p)
	if err != nil {
		return err
	}
	if err := reports.Encode(report{Record: r}); err != nil {
		return fmt.Errorf("report host: %w", err)
	}
	select {
	case <-end.Done():
	case <-leader: // poweroff inside, or a crash
	}
	return nil
}

// start boots the host and returns when systemd reports that it has booted. The channel is
// closed when PID 1 has ended.
func (r *record) start(end context.Context, p plan) (<-chan struct{}, error) {
	ready, err := r.listenReady()
	if err != nil {
		return nil, err
	}
	gone, err := r.startLeader(p)
	if err != nil {
		return nil, err
	}
	select {
	case <-ready:
		return gone, nil
	case <-gone:
		return nil, fmt.Errorf("PID 1 ended while booting; its last words: %s", r.consoleTail())
	case <-end.Done():
		return nil, errors.New("told to end while booting")
	case <-time.After(bootPatience):
		return nil, fmt.Errorf("not booted after %s; last words of PID 1: %s", bootPatience, r.consoleTail())
	}
}

// listenReady waits for READY=1 from PID 1, which systemd sends to a container manager at
// the end of the boot (systemd(1), $NOTIFY_SOCKET).
func (r *record) listenReady() (<-chan struct{}, error) {
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: r.path("notify"), Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen for readiness: %w", err)
	}
	ready := make(chan struct{})
	go func() {
		defer socket.Close()
		buf := make([]byte, 4096)
		for {
			n, err := socket.Read(buf)
			if err != nil {
				return
			}
			for line := range bytes.SplitSeq(buf[:n], []byte("\n")) {
				if string(line) == "READY=1" {
					close(ready)
					return
				}
			}
		}
	}()
	return ready, nil
}

// startLeader creates the cgroup, directories, namespaces and uplink, and returns when
// systemd has been executed as PID 1.
func (r *record) startLeader(p plan) (<-chan struct{}, error) {
	binds, err := makeDirs(r.Dir)
	if err != nil {
		return nil, err
	}
	binds = append(binds, Bind{Source: r.path("notify"), Target: notifySocket})
	if err := makeCgroup(r.cgroup()); err != nil {
		return nil, err
	}
	cmd, tell, failure, err := r.spawn()
	if err != nil {
		return nil, err
	}
	defer failure.Close()
	defer tell.Close()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_ = cmd.Wait()
	}()
	r.Leader = cmd.Process.Pid
	if err := errors.Join(r.save(), r.makeLink(), r.joinLAN()); err != nil {
		return nil, err
	}
	err = json.NewEncoder(tell).Encode(bootPlan{
		Name: r.Name, Suite: r.Suite, Root: p.Root, Dir: r.Dir, Binds: append(binds, p.Binds...),
		Addr: r.hostAddr(), Gateway: r.callerAddr().Addr(), LAN: r.lanAddrs(),
	})
	if err != nil {
		return nil, fmt.Errorf("tell PID 1 its plan: %w", err)
	}
	words, err := io.ReadAll(failure)
	if len(words) > 0 {
		err = errors.New(string(words))
	}
	return gone, err
}

// spawn clones the future PID 1 into new namespaces and the host's cgroup. The cgroup
// namespace is unshared after the clone: if clone created it, its root would be the cgroup
// of this process.
func (r *record) spawn() (cmd *exec.Cmd, tell, failure *os.File, err error) {
	cgroup, err := os.Open(r.cgroup())
	if err != nil {
		return nil, nil, nil, fmt.Errorf("open cgroup: %w", err)
	}
	defer cgroup.Close()
	console, err := os.OpenFile(r.path("console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("open console: %w", err)
	}
	defer console.Close()
	planR, planW, err := os.Pipe()
	if err != nil {
		return nil, nil, nil, err
	}
	defer planR.Close()
	failureR, failureW, err := os.Pipe()
	if err != nil {
		return nil, nil, nil, err
	}
	defer failureW.Close()
	cmd = helper(bootName)
	cmd.Stdout, cmd.Stderr = console, console
	cmd.ExtraFiles = []*os.File{planR, failureW}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
			unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Unshareflags: unix.CLONE_NEWCGROUP,
		UseCgroupFD:  true,
		CgroupFD:     int(cgroup.Fd()),
		Setsid:       true,
		Pdeathsig:    syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, nil, fmt.Errorf("start PID 1: %w", err)
	}
	return cmd, planW, failureR, nil
}

func (r *record) consoleTail() string {
	text, _ := os.ReadFile(filepath.Clean(r.path("console")))
	text = bytes.TrimSpace(text)
	return string(text[max(0, len(text)-1000):])
}
