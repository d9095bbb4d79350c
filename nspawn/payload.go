package nspawn

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/machine"
)

// The exit status of systemd-nspawn does not tell which signal killed the
// payload. Who has held a pidfd of the payload from before its end can ask the
// kernel for that (PIDFD_GET_INFO with PIDFD_INFO_EXIT, Linux 6.15).

// payloadTimeout is how long the payload is looked for after the machine is
// up. It is there in well under a millisecond, if not already gone again.
const payloadTimeout = time.Second

// findPayload finds the payload of a machine that may be being started: the leader is
// there before its stub init has forked the payload, and no event tells of the fork.
// Hence a few looks, while there is a leader.
func findPayload(leaderPID int, m machine.Mode) (process, error) {
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for deadline := time.Now().Add(payloadTimeout); ; <-look.C {
		leader, err := readProcess(leaderPID)
		if err != nil {
			return process{}, fmt.Errorf("%w: %w", os.ErrProcessDone, err)
		}
		payload, err := payloadProcess(leader, m)
		if err == nil || time.Now().After(deadline) {
			return payload, err
		}
	}
}

// open returns a pidfd of just this process, nil if it is gone: it is looked at
// again, so that no other process that got its PID can be meant.
func (p process) open() *os.File {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return nil
	}
	file := os.NewFile(uintptr(fd), "payload")
	if now, err := readProcess(p.pid); err != nil || now != p {
		file.Close()
		return nil
	}
	return file
}

// killedBy is the signal that killed the process of a pidfd, 0 if it exited or
// the kernel does not tell.
func killedBy(pidfd *os.File) int {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if err := unix.IoctlPidfdInfo(int(pidfd.Fd()), &info); err != nil || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return 0
	}
	if status := unix.WaitStatus(info.Exit_code); status.Signaled() {
		return int(status.Signal())
	}
	return 0
}
