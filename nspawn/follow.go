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

// EventKind is what happened to a machine.
type EventKind int

// The kinds of events. Ended is the last one.
const (
	Started  EventKind = iota // systemd has told when: at once, or with the first news of one that we started
	Ready                     // a guest that notifies says that it is up
	Rebooted                  // the guest has asked for it, and runs again
	Held                      // a payload cannot begin again; Err says why
	Ended
)

// Event is something that happened to a machine.
type Event struct {
	Kind EventKind
	Exit Exit      // of an Ended machine
	Err  error     // if how it ended is not known, or why it is Held
	Time time.Time // of the start or the end, by systemd's record
}

// Follower tells what happens to a machine.
type Follower struct {
	manager *Manager
	machine string
	mode    machine.Mode
	begin   Begin
	held    chan error    // see Held
	fresh   int           // PID of an nspawn that was just started
	socket  *notifySocket // nil if it could not be made
	payload *os.File      // a pidfd, nil if none is held

	cancelBegin context.CancelFunc // of beginAgain, if it was called
	beginEnded  chan struct{}      // closed when it has ended
}

// Follow follows a machine that somebody else started. It cannot fail: where no
// socket can be made, as on a full disk, a guest that is ready is not told of.
func (m *Manager) Follow(name string, mode machine.Mode, begin Begin) *Follower {
	socket, _ := listenNotify(m.dirs.Notify(name))
	return m.follow(name, mode, begin, socket)
}

func (m *Manager) follow(name string, mode machine.Mode, begin Begin, socket *notifySocket) *Follower {
	return &Follower{manager: m, machine: name, mode: mode, begin: begin, socket: socket, held: make(chan error)}
}

// Events sends what happens until the machine has ended or ctx is done, and
// then closes the channel and the follower.
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

// Close is for a follower whose Events are not called.
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
	first, restarts := true, uint32(0) // how many of them are told
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
				restarts = unit.NRestarts // those before us are no news
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
				_ = cgroup.Limit(f.machine) // systemd has made the unit's group anew
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

// hold makes the signal known that may kill the payload. The exit code of a
// booted system's init has nothing to add.
func (f *Follower) hold(payload process.Process) {
	if f.mode != machine.Boot {
		f.payload = payload.Open()
	}
}

// recover looks at a machine that was started by somebody else. Its payload may wait for
// a plugin.
func (f *Follower) recover(ctx context.Context, unit systemd.UnitState) {
	leader, err := process.Leader(int(unit.MainPID))
	if err != nil {
		f.beginAgain(ctx) // it is being restarted
		return
	}
	if payload, err := process.Payload(leader, f.mode); err == nil {
		f.hold(payload)
	}
	if !f.manager.hasBegun(f.machine, f.mode, leader) {
		f.beginAgain(ctx)
	}
}

// beginAgain lets the payload begin, once it waits. The one before has begun, or its
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

// complete adds the signal that killed the payload, if it is known.
func (f *Follower) complete(exit *Exit) {
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
