package process

import (
	"fmt"
	"os"
	"time"

	"nomad-driver-nspawn/nspawn/machine"
)

// Leader returns the machine's PID 1: the child of systemd-nspawn that heads a PID
// namespace. Its short-lived other children do not.
func Leader(nspawn int) (Process, error) {
	if nspawn == 0 {
		return Process{}, fmt.Errorf("the machine does not run: %w", os.ErrProcessDone)
	}
	return child(nspawn, 1)
}

// Payload is the process that the job asked for.
func Payload(leader Process, m machine.Mode) (Process, error) {
	if m == machine.ProcessTwo {
		return child(leader.PID, 2)
	}
	return leader, nil
}

// payloadTimeout is how long the payload is looked for after the machine is
// up. It is there in well under a millisecond, if not already gone again.
const payloadTimeout = time.Second

// FindPayload finds the payload of a machine that may be being started: the leader is
// there before its stub init has forked the payload, and no event tells of the fork.
// Hence a few looks, while there is a leader.
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
