package process

import (
	"fmt"
	"os"
	"time"

	"nomad-driver-nspawn/nspawn/machine"
)

// Leader returns the machine's PID 1: the child of systemd-nspawn that heads a PID
// namespace. Its other children are short-lived and do not.
func Leader(nspawn int) (Process, error) {
	if nspawn == 0 {
		return Process{}, fmt.Errorf("the machine is not running: %w", os.ErrProcessDone)
	}
	return child(nspawn, 1)
}

// Payload returns the process that the job asked for.
func Payload(leader Process, m machine.Mode) (Process, error) {
	if m == machine.ProcessTwo {
		return child(leader.PID, 2)
	}
	return leader, nil
}

// payloadTimeout limits the search for the payload after the machine is up. The payload
// appears in well under a millisecond, unless it has already ended.
const payloadTimeout = time.Second

// FindPayload waits for the payload of a machine that may still be starting. The leader
// exists before its stub init has forked the payload, and no event reports the fork. So
// FindPayload looks a few times, for as long as there is a leader.
func FindPayload(leaderPID int, m machine.Mode) (Process, error) {
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for deadline := time.Now().Add(payloadTimeout); ; <-look.C {
		leader, err := Read(leaderPID)
		if err != nil {
			return Process{}, fmt.Errorf("%w: %w", os.ErrProcessDone, err)
		}
		payload, err := Payload(leader, m)
		if err == nil || time.Now().After(deadline) {
			return payload, err
		}
	}
}
