package nspawn

import (
	"context"
	"fmt"
	"os"
	"time"

	"nomad-driver-nspawn/nspawn/cgroup"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/process"
	"nomad-driver-nspawn/nspawn/systemd"
)

// EventKind is the kind of an event.
type EventKind int

// The kinds of events. Ended is the last one.
const (
	Started  EventKind = iota // the time of the start is known: at once, or, if we started the machine, with the first state that systemd sends
	Ready                     // the guest has reported that it is up
	Rebooted                  // the guest has asked for a reboot, and runs again
	Held                      // the payload cannot begin after a reboot; Err says why
	Ended
)

// Event is something that happened to a machine.
type Event struct {
	Kind EventKind
	Exit Exit      // of an Ended machine
	Err  error     // why the machine is Held, or why its exit is not known
	Time time.Time // of the start or the end, as recorded by systemd
}

// Follower reports what happens to a machine.
type Follower struct {
	manager *Manager
	machine string
	mode    machine.Mode
	begin   Begin
	held    chan error    // see Held
	fresh   int           // PID of the nspawn that we have just started, otherwise 0
	socket  *notifySocket // nil if it could not be made
	payload *os.File      // a pidfd, nil if none is held

	cancelBegin context.CancelFunc // of beginAgain, if it was called
	beginEnded  chan struct{}      // closed when it has ended
}

// Follow follows a machine that someone else started. It cannot fail: if no socket can be
// made, for example on a full disk, Ready events are missing.
func (m *Manager) Follow(name string, mode machine.Mode, begin Begin) *Follower {
	socket, _ := listenNotify(m.dirs.Notify(name))
	return m.follow(name, mode, begin, socket)
}

func (m *Manager) follow(name string, mode machine.Mode, begin Begin, socket *notifySocket) *Follower {
	return &Follower{manager: m, machine: name, mode: mode, begin: begin, socket: socket, held: make(chan error)}
}

// Events sends what happens until the machine has ended or ctx is done. Then it closes the
// channel and the follower.
func (f *Follower) Events(ctx context.Context) <-chan Event {
	events := make(chan Event)
	go func() {
		defer close(events)
		defer f.Close()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		f.run(ctx, f.manager.bus.WatchProcess(ctx, machine.UnitName(f.machine), f.fresh), events)
	}()
	return events
}

// Close closes a follower whose Events method was not called.
func (f *Follower) Close() {
	f.stopBegin()
	if f.socket != nil {
		f.socket.close()
	}
	if f.payload != nil {
		f.payload.Close()
	}
}

func (f *Follower) run(ctx context.Context, states <-chan systemd.UnitState, events chan<- Event) {
	first, restarts := true, uint32(0) // the number of restarts that were reported
	var ready <-chan struct{}
	if f.socket != nil {
		ready = f.socket.ready
	}
	for {
		select {
		case unit, ok := <-states:
			if !ok {
				return
			}
			if gone(unit) {
				f.stopBegin()
				f.send(ctx, events, Event{Kind: Ended, Err: fmt.Errorf("machine %s: %w", f.machine, ErrLost), Time: time.Now()})
				return
			}
			if first && f.fresh == 0 {
				restarts = unit.NRestarts // earlier restarts are not events
			}
			if first && unit.NRestarts == restarts {
				f.send(ctx, events, Event{Kind: Started, Time: unit.ExecMainStart})
			}
			if exit, ok := ended(unit); ok {
				f.stopBegin()
				f.complete(&exit)
				f.send(ctx, events, Event{Kind: Ended, Exit: exit, Time: unit.ExecMainExit})
				return
			}
			if first && f.fresh == 0 {
				f.recover(ctx, unit)
			}
			if unit.NRestarts > restarts {
				_ = cgroup.Limit(f.machine) // systemd has created the unit's group again
				f.beginAgain(ctx)
				f.send(ctx, events, Event{Kind: Rebooted})
			}
			first, restarts = false, unit.NRestarts
		case <-ready:
			f.send(ctx, events, Event{Kind: Ready})
		case err := <-f.held:
			f.send(ctx, events, Event{Kind: Held, Err: err, Time: time.Now()})
		}
	}
}

// hold opens a pidfd of the payload, by which the signal that kills it can be found out.
// It is not needed for booted systems, because the exit status of an init says enough.
func (f *Follower) hold(payload process.Process) {
	if f.mode != machine.Boot {
		f.payload = payload.Open()
	}
}

// recover looks at a machine that someone else started. Its payload may be waiting for a
// plugin.
func (f *Follower) recover(ctx context.Context, unit systemd.UnitState) {
	leader, err := process.Leader(int(unit.MainPID))
	if err != nil {
		f.beginAgain(ctx) // the machine is being restarted
		return
	}
	if payload, err := process.Payload(leader, f.mode); err == nil {
		f.hold(payload)
	}
	if !f.manager.hasBegun(f.machine, f.mode, leader) {
		f.beginAgain(ctx)
	}
}

// beginAgain lets the payload begin, once it waits. An earlier payload has begun, or its
// leader has ended.
func (f *Follower) beginAgain(ctx context.Context) {
	f.stopBegin()
	ctx, f.cancelBegin = context.WithCancel(ctx)
	ended := make(chan struct{})
	f.beginEnded = ended
	go func() {
		defer close(ended)
		f.manager.beginAgain(ctx, f.machine, f.mode, f.begin, func(err error) {
			select {
			case f.held <- err:
			case <-ctx.Done():
			}
		})
	}()
}

// stopBegin ends beginAgain, and returns when it has ended. Otherwise it could open the
// gate after the next one has, which would then listen on a socket that no shim finds, or
// in the directory of a machine that is being removed.
func (f *Follower) stopBegin() {
	if f.cancelBegin != nil {
		f.cancelBegin()
		<-f.beginEnded
	}
}

// complete adds what the unit does not say, if it is known: the process that was killed for
// its memory, and the signal that killed the payload.
func (f *Follower) complete(exit *Exit) {
	if exit.OOMKilled {
		exit.Killed = cgroup.LastKilled(f.machine)
	}
	if f.payload == nil {
		return
	}
	if signal := process.KilledBy(f.payload); signal != 0 && exit.Signal == 0 {
		exit.kill(signal)
	}
}

func (f *Follower) send(ctx context.Context, events chan<- Event, event Event) {
	select {
	case events <- event:
	case <-ctx.Done():
	}
}
