package nspawn

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/systemd"
)

func TestEnded(t *testing.T) {
	for _, c := range []struct {
		unit  systemd.UnitState
		exit  Exit
		ended bool
	}{
		{systemd.UnitState{ActiveState: "active", SubState: "running"}, Exit{}, false},
		{systemd.UnitState{ActiveState: "activating", SubState: "start"}, Exit{}, false},
		{systemd.UnitState{ActiveState: "activating", SubState: "auto-restart", ExecMainCode: 1, ExecMainStatus: 133}, Exit{}, false},
		{systemd.UnitState{ActiveState: "deactivating", SubState: "stop-sigterm"}, Exit{}, false},
		{systemd.UnitState{ActiveState: "active", SubState: "exited", ExecMainCode: 1}, Exit{}, true},
		{systemd.UnitState{ActiveState: "failed", SubState: "failed", ExecMainCode: 1, ExecMainStatus: 7}, Exit{Code: 7}, true},
		{systemd.UnitState{ActiveState: "failed", SubState: "failed", ExecMainCode: 2, ExecMainStatus: 9}, Exit{Code: 137, Signal: 9}, true},
		{systemd.UnitState{ActiveState: "failed", SubState: "failed", Result: "oom-kill", ExecMainCode: 1, ExecMainStatus: 255}, Exit{Code: 255, OOMKilled: true}, true},
	} {
		exit, ok := ended(c.unit)
		must.Eq(t, c.ended, ok, must.Sprintf("%+v", c.unit))
		must.Eq(t, c.exit, exit, must.Sprintf("%+v", c.unit))
	}
}

func TestHostSignalThatKilledPayload(t *testing.T) {
	m := newManager(t)
	for _, mode := range []machine.Mode{machine.ProcessOne, machine.ProcessTwo} {
		spec := newMachine(t, m, "while :; do sleep 1000 & wait $!; done")
		spec.Mode = mode
		out := mustStart(t, m, spec)
		awaitTrap(t, m, spec)
		awaitHeld(t, m, spec)
		must.NoError(t, m.Signal(t.Context(), spec.Machine, mode, unix.SIGKILL))
		for event := range out.events {
			if event.Kind != Ended {
				continue
			}
			if isKernel(t, 6, 15) { // it reports the signal
				must.Eq(t, Exit{Code: 137, Signal: 9}, event.Exit)
			} else {
				must.Eq(t, map[machine.Mode]Exit{machine.ProcessOne: {Code: 1}, machine.ProcessTwo: {Code: 255}}[mode], event.Exit)
			}
		}
	}
}

// awaitHeld returns when the follower has a pidfd of the payload, which it opens after the
// start.
func awaitHeld(t *testing.T, m *Manager, spec machine.Spec) {
	payload, err := m.payload(t.Context(), spec.Machine, spec.Mode)
	must.NoError(t, err)
	for deadline := time.Now().Add(30 * time.Second); !holds(t, payload.PID); time.Sleep(10 * time.Millisecond) {
		must.True(t, time.Now().Before(deadline), must.Sprint("no pidfd of the payload is opened"))
	}
}

// holds reports whether this process has a pidfd of another one.
func holds(t *testing.T, pid int) bool {
	files, err := filepath.Glob("/proc/self/fdinfo/*")
	must.NoError(t, err)
	return slices.ContainsFunc(files, func(path string) bool {
		info, _ := os.ReadFile(path) // it may have been closed
		return strings.Contains(string(info), fmt.Sprintf("\nPid:\t%d\n", pid))
	})
}

// isKernel reports whether the kernel is of a version, or newer.
func isKernel(t *testing.T, wantMajor, wantMinor int) bool {
	var name unix.Utsname
	must.NoError(t, unix.Uname(&name))
	var major, minor int
	_, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor)
	must.NoError(t, err)
	return major > wantMajor || major == wantMajor && minor >= wantMinor
}
