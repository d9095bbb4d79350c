package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// asCommand is the environment variable that makes the test binary act as the command.
const asCommand = "VM_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestEndsWithItsCaller ends the command in every possible way while its virtual machine
// boots. Nothing of the virtual machine is left.
func TestEndsWithItsCaller(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("this test needs root")
		}
		t.Skip("SKIPPED: this test needs root")
	}
	for name, end := range map[string]func(caller, command int) error{
		"interrupted":   func(_, command int) error { return unix.Kill(command, unix.SIGINT) },
		"terminated":    func(_, command int) error { return unix.Kill(command, unix.SIGTERM) },
		"caller killed": func(caller, _ int) error { return unix.Kill(caller, unix.SIGKILL) },
		"killed":        func(_, command int) error { return unix.Kill(command, unix.SIGKILL) },
	} {
		t.Run(name, func(t *testing.T) {
			caller := exec.Command("sh", "-c", `"$0" test nomad-driver-nspawn/e2e/vm/vmtest; true`, executable(t))
			caller.Env = append(os.Environ(), asCommand+"=1")
			caller.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			progress, err := caller.StderrPipe()
			must.NoError(t, err)
			must.NoError(t, caller.Start())
			t.Cleanup(func() { _ = caller.Process.Kill(); _ = caller.Wait() })
			awaitLine(t, progress, "booting ")
			command := onlyChild(t, caller.Process.Pid)
			qemu := onlyChild(t, command)
			files := workOf(t, command)
			pidfds := []unix.PollFd{pidfd(t, command), pidfd(t, qemu)}

			must.NoError(t, end(caller.Process.Pid, command))
			for _, process := range pidfds {
				awaitEnd(t, process)
			}
			if name == "killed" { // the next run sweeps
				w, err := newWork()
				must.NoError(t, err)
				w.remove()
			}
			must.DirNotExists(t, files)
		})
	}
}

func awaitEnd(t *testing.T, process unix.PollFd) {
	for deadline := time.Now().Add(time.Minute); ; {
		n, err := unix.Poll([]unix.PollFd{process}, int(time.Until(deadline).Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		must.NoError(t, err)
		must.EqOp(t, 1, n, must.Sprint("it does not end"))
		return
	}
}

func executable(t *testing.T) string {
	path, err := os.Executable()
	must.NoError(t, err)
	return path
}

func awaitLine(t *testing.T, from io.Reader, prefix string) {
	text := strings.Builder{}
	for lines := bufio.NewScanner(from); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), prefix) {
			go io.Copy(io.Discard, from)
			return
		}
		fmt.Fprintln(&text, lines.Text())
	}
	must.Unreachable(t, must.Sprint("no such line: ", prefix, "; there are:\n", text.String()))
}

func onlyChild(t *testing.T, parent int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent))
	must.NoError(t, err)
	child, err := strconv.Atoi(strings.TrimSpace(string(text)))
	must.NoError(t, err)
	return child
}

// workOf returns the directory of the command's run, which the command holds open.
func workOf(t *testing.T, command int) string {
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", command))
	must.NoError(t, err)
	for _, fd := range fds {
		if path, err := os.Readlink(fd); err == nil && strings.Contains(path, "/vm/runs/") {
			must.DirExists(t, path)
			return path
		}
	}
	must.Unreachable(t, must.Sprint("the command has no directory"))
	return ""
}

func pidfd(t *testing.T, pid int) unix.PollFd {
	fd, err := unix.PidfdOpen(pid, 0)
	must.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
}

// TestCached checks that what is missing is made once, and that nothing unfinished is
// kept.
func TestCached(t *testing.T) {
	t.Setenv("NSPAWN_TEST_CACHE", t.TempDir())
	made := 0
	fill := func(_ context.Context, dir string) error {
		made++
		return os.WriteFile(filepath.Join(dir, "x"), nil, 0o600)
	}
	_, err := cached(t.Context(), "thing", "1", func(ctx context.Context, dir string) error {
		return errors.Join(fill(ctx, dir), errors.New("no"))
	})
	must.ErrorContains(t, err, "make thing: no")
	first, err := cached(t.Context(), "thing", "1", fill)
	must.NoError(t, err)
	must.FileExists(t, filepath.Join(first, "x"))
	again, err := cached(t.Context(), "thing", "1", fill)
	must.NoError(t, err)
	must.EqOp(t, first, again)
	other, err := cached(t.Context(), "thing", "2", fill)
	must.NoError(t, err)
	must.NotEqOp(t, first, other)
	must.EqOp(t, 3, made)
	entries, err := os.ReadDir(filepath.Dir(first))
	must.NoError(t, err)
	must.Len(t, 2, entries)
}

// TestSweep checks that the directory of a living run is kept.
func TestSweep(t *testing.T) {
	t.Setenv("NSPAWN_TEST_CACHE", t.TempDir())
	alive, err := newWork()
	must.NoError(t, err)
	dead, err := newWork()
	must.NoError(t, err)
	must.NoError(t, dead.lock.Close()) // as its end does
	next, err := newWork()
	must.NoError(t, err)
	must.DirExists(t, alive.dir)
	must.DirNotExists(t, dead.dir)
	next.remove()
	alive.remove()
	must.DirNotExists(t, alive.dir)
}
