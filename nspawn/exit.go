package nspawn

import (
	"errors"

	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/systemd"
)

// Exit is how a machine ended.
type Exit struct {
	// Code is the exit code of the payload, or 128 and the signal that killed
	// it. Where that signal is not known, it is what systemd-nspawn makes of
	// it: 255 (ProcessTwo) or 1 (ProcessOne). nspawn reserves 133 and makes 1
	// of it.
	Code int
	// Signal killed the payload, where it is known, or systemd-nspawn itself.
	Signal int
	// OOMKilled says that the kernel killed a process for lack of memory.
	OOMKilled bool
	// Reboots says that the guest has rebooted more often than it may.
	Reboots bool
}

// kill makes it a death by signal.
func (e *Exit) kill(signal int) { e.Code, e.Signal = 128+signal, signal }

// ErrLost is the end of a machine whose unit is gone, and with it its exit
// status: it was removed by somebody else, or the host was rebooted.
var ErrLost = errors.New("unit is gone")

// cldExited is si_code of a process that exited (sigaction(2)); other codes
// stand for a death by signal.
const cldExited = 1

// rebootedTooOften reports whether systemd has not started the machine again after a
// reboot. The unit's Result is that of nspawn then, not start-limit-hit.
func rebootedTooOften(u systemd.UnitState) bool {
	return u.ExecMainCode == cldExited && u.ExecMainStatus == machine.RebootStatus && u.NRestarts >= machine.MaxReboots
}

// gone says whether there is no such unit. A running one is not gone even if its
// file is, so that systemd cannot load it any more.
func gone(u systemd.UnitState) bool {
	return u.LoadState == "not-found" && u.ActiveState == "inactive"
}

// ended says whether the machine of this unit has ended, and how.
// A unit that systemd is about to restart (auto-restart) has not.
func ended(u systemd.UnitState) (Exit, bool) {
	switch {
	case u.SubState == "exited", u.ActiveState == "failed", u.ActiveState == "inactive":
	default:
		return Exit{}, false
	}
	exit := Exit{OOMKilled: u.Result == "oom-kill", Reboots: rebootedTooOften(u)}
	if u.ExecMainCode == cldExited {
		exit.Code = int(u.ExecMainStatus)
	} else {
		exit.kill(int(u.ExecMainStatus))
	}
	return exit, true
}
