package nspawn

import (
	"errors"

	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/systemd"
)

// Exit says how a machine ended.
type Exit struct {
	// Code is the exit code of the payload, or 128 plus the signal that killed it. If the
	// signal is not known, Code is what systemd-nspawn returns instead: 255 (ProcessTwo)
	// or 1 (ProcessOne). nspawn uses exit code 133 itself (reboot) and reports a payload's
	// 133 as 1.
	Code int
	// Signal is the signal that killed the payload, if it is known, or systemd-nspawn
	// itself.
	Signal int
	// OOMKilled means that the kernel killed a process because memory ran out.
	OOMKilled bool
	// Killed is the name of that process, "" if the kernel's log does not have it. It is
	// what the process calls itself.
	Killed string `json:",omitempty"`
	// Reboots means that the guest has rebooted more often than it may.
	Reboots bool
}

// kill makes the exit a death by signal.
func (e *Exit) kill(signal int) { e.Code, e.Signal = 128+signal, signal }

// ErrLost means that the machine's unit is gone, and its exit status with it: someone else
// removed it, or the host was rebooted.
var ErrLost = errors.New("unit is gone")

// cldExited is the si_code of a process that exited (sigaction(2)). Other codes mean death
// by signal.
const cldExited = 1

// rebootedTooOften reports whether systemd has not started the machine again after a
// reboot. The unit's Result is then the one of nspawn, not start-limit-hit.
func rebootedTooOften(u systemd.UnitState) bool {
	return u.ExecMainCode == cldExited && u.ExecMainStatus == machine.RebootStatus && u.NRestarts >= machine.MaxReboots
}

// gone reports whether the unit does not exist. A running unit exists even if systemd
// cannot load it any more because its file is missing.
func gone(u systemd.UnitState) bool {
	return u.LoadState == "not-found" && u.ActiveState == "inactive"
}

// ended reports whether the machine of this unit has ended, and how. A unit that systemd
// is about to restart (auto-restart) has not ended.
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
