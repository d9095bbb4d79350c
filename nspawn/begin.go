package nspawn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"nomad-driver-nspawn/nspawn/cgroup"
	"nomad-driver-nspawn/nspawn/gate"
	"nomad-driver-nspawn/nspawn/gate/inside"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/process"
)

// Begin says how a machine's payload begins: at the start, and again whenever a guest
// reboots.
type Begin struct {
	Instructions inside.Instructions
	Steps        []Step
	// Sysctls are parameters of the kernel, in the machine's own namespaces. They are set
	// after the steps.
	Sysctls map[string]string
}

// Step finishes a machine from outside while its payload waits at the gate. Nothing of the
// image has run by then, and nothing runs before all steps are done. If a step fails, the
// payload does not begin.
type Step func(ctx context.Context, waiting Waiting) error

// Waiting is a machine whose payload waits at the gate.
type Waiting struct {
	Leader   int // PID on the host
	identity string
}

// waiting is a visitor of the gate that is the payload of a machine.
type waiting struct {
	*gate.Visitor
	leader, payload process.Process
}

// admit returns the machine's processes if the peer is its payload, waiting to begin. A
// payload that has begun is not admitted again, whatever it turns itself into.
func (m *Manager) admit(name string, mode machine.Mode, peer gate.Peer) (leader, payload process.Process, err error) {
	payload, err = process.Read(peer.PID)
	if err != nil {
		return leader, payload, err
	}
	leader = payload
	if mode == machine.ProcessTwo {
		if leader, err = process.Read(payload.Parent); err != nil {
			return leader, payload, err
		}
	}
	nspawn, err := process.Read(leader.Parent)
	if err != nil {
		return leader, payload, err
	}
	group, err := cgroup.Of(nspawn.PID)
	if err != nil {
		return leader, payload, err
	}
	root, err := leader.RootUID()
	if err != nil {
		return leader, payload, err
	}
	isPayload := leader.Inside == 1 && (mode != machine.ProcessTwo || payload.Inside == 2)
	isOurs := nspawn.Inside == nspawn.PID && strings.Contains(group+"/", "/"+machine.UnitName(name)+"/")
	if !isPayload || !isOurs || peer.UID != root {
		return leader, payload, fmt.Errorf("process %d, user %d, is not the payload of machine %s", peer.PID, peer.UID, name)
	}
	if m.hasBegun(name, mode, leader) {
		return leader, payload, fmt.Errorf("the payload of machine %s has begun already", name)
	}
	return leader, payload, nil
}

// await returns the payload that connects to the gate.
func (m *Manager) await(ctx context.Context, name string, mode machine.Mode, g *gate.Gate) (w waiting, err error) {
	w.Visitor, err = g.Await(ctx, func(peer gate.Peer) (err error) {
		w.leader, w.payload, err = m.admit(name, mode, peer)
		return err
	})
	return w, err
}

// begin runs the steps and lets the payload begin. If it returns nil, the payload has
// begun, and may have ended. The error is an *inside.Failure if the image does not have
// the command.
//
// begin writes a record before it gives the word, so that a later plugin does not wait for
// a payload that has begun.
func (m *Manager) begin(ctx context.Context, name string, w waiting, begin Begin) error {
	defer w.Close()
	if err := cgroup.ShowLimits(name); err != nil {
		return err
	}
	identity, err := w.leader.Identity()
	if err != nil {
		return err
	}
	if begin.Instructions.Init {
		_ = w.leader.EndLinesInLF() // a guest with a console for screens runs as well
	}
	waiting := Waiting{Leader: w.leader.PID, identity: identity}
	for _, step := range begin.Steps {
		if err := step(ctx, waiting); err != nil {
			return err
		}
	}
	if err := waiting.setSysctls(begin.Sysctls); err != nil {
		return err
	}
	record, err := os.Create(m.dirs.Begun(name))
	if err != nil {
		return fmt.Errorf("record that machine %s begins: %w", name, err)
	}
	defer record.Close()
	if _, err := fmt.Fprintln(record, identity, "told"); err != nil {
		return fmt.Errorf("record that machine %s begins: %w", name, err)
	}
	if err := w.Open(ctx, begin.Instructions); err != nil {
		return err
	}
	// Where it cannot be recorded, a plugin that follows looks for itself. The line before
	// stays: a plugin may end at any time, and never leaves an empty record of a payload
	// that runs.
	_, _ = fmt.Fprintln(record, identity, "begun")
	return nil
}

// hasBegun reports whether the payload of this leader has begun. If it was told to begin
// by a plugin that has died since, it has begun if it is no longer the shim.
func (m *Manager) hasBegun(name string, mode machine.Mode, leader process.Process) bool {
	record, err := os.ReadFile(m.dirs.Begun(name))
	if err != nil {
		return false
	}
	identity, err := leader.Identity()
	if err != nil || !bytes.HasPrefix(record, []byte(identity+" ")) {
		return false // the record is about an earlier leader: the guest has rebooted since
	}
	if bytes.HasSuffix(record, []byte(" begun\n")) {
		return true
	}
	payload, err := process.Payload(leader, mode)
	if err != nil {
		return true
	}
	program, err := payload.Program()
	return err != nil || program != inside.ShimPath
}

// hasGate reports whether the machine has a gate. A machine without one was started by a
// version of the driver that had no gates, and its payload does not wait.
func (m *Manager) hasGate(name string) bool {
	_, err := os.Stat(m.dirs.Gate(name))
	return !errors.Is(err, os.ErrNotExist)
}

// beginAgainDelay is the time between two attempts to let a rebooted guest begin.
const beginAgainDelay = time.Second

// beginAgain lets a payload begin for which no start is waiting: the payload of a guest
// that reboots, or of a machine whose plugin died. It tries until ctx ends, and reports
// each new error except the end of ctx.
func (m *Manager) beginAgain(ctx context.Context, name string, mode machine.Mode, begin Begin, report func(error)) {
	last := ""
	for ctx.Err() == nil && m.hasGate(name) {
		err := m.beginOnce(ctx, name, mode, begin)
		var failure *inside.Failure
		switch {
		case err == nil, ctx.Err() != nil:
			return
		case errors.As(err, &failure):
			report(err)
			return
		}
		if err.Error() != last {
			report(err)
		}
		last = err.Error()
		select {
		case <-ctx.Done():
			return
		case <-time.After(beginAgainDelay):
		}
	}
}

func (m *Manager) beginOnce(ctx context.Context, name string, mode machine.Mode, begin Begin) error {
	g, err := gate.Listen(m.dirs.Gate(name))
	if err != nil {
		return err
	}
	w, err := m.await(ctx, name, mode, g)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return m.begin(ctx, name, w, begin)
}
