package nspawn

import (
	"context"
	"fmt"
	"os"
	"time"

	"nomad-driver-nspawn/nspawn/systemd"
)

// EventKind is what happened to a machine.
type EventKind int

// The kinds of events. Ended is the last one.
const (
	Started  EventKind = iota // systemd has told when: at once, or with the first news of one that we started
	Ready                     // a guest that notifies says that it is up
	Rebooted                  // the guest has asked for it, and runs again
	Ended
)

// Event is something that happened to a machine.
type Event struct {
	Kind EventKind
	Exit Exit      // of an Ended machine
	Err  error     // if how it ended is not known
	Time time.Time // of the start or the end, by systemd's record
}

// Follower tells what happens to a machine.
type Follower struct {
	bus     *systemd.Conn
	machine string
	mode    Mode
	fresh   int           // PID of an nspawn that was just started
	socket  *notifySocket // nil if it could not be made
	payload chan *os.File // a pidfd or nil; without a channel, none is held
}

// Follow follows a machine that somebody else started. It cannot fail: where no
// socket can be made, as on a full disk, a guest that is ready is not told of.
func (m *Manager) Follow(machine string, mode Mode) *Follower {
	socket, _ := listenNotify(m.dirs.notify(machine))
	return m.follow(machine, mode, socket)
}

func (m *Manager) follow(machine string, mode Mode, socket *notifySocket) *Follower {
	return &Follower{bus: m.bus, machine: machine, mode: mode, socket: socket}
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
		f.run(ctx, f.bus.WatchProcess(ctx, UnitName(f.machine), f.fresh), events)
	}()
	return events
}

// Close is for a follower whose Events are not called.
func (f *Follower) Close() {
	if f.socket != nil {
		f.socket.close()
	}
	if f.payload != nil {
		if file := <-f.payload; file != nil {
			file.Close()
		}
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
				f.complete(&exit)
				f.send(ctx, events, Event{Kind: Ended, Exit: exit, Time: unit.ExecMainExit})
				return
			}
			if first && f.payload == nil {
				if leader, err := leader(int(unit.MainPID)); err == nil {
					f.hold(leader.pid)
				}
			}
			if unit.NRestarts > restarts {
				_ = limitGroups(unitGroup(f.machine)) // systemd has made the unit's group anew
				f.send(ctx, events, Event{Kind: Rebooted})
			}
			first, restarts = false, unit.NRestarts
		case <-ready:
			f.send(ctx, events, Event{Kind: Ready})
		}
	}
}

// hold makes the signal known that may kill the payload. The exit code of a
// booted system's init has nothing to add.
func (f *Follower) hold(leader int) {
	if f.mode == Boot {
		return
	}
	f.payload = make(chan *os.File, 1)
	go func() { f.payload <- openPayload(leader, f.mode) }()
}

// complete adds the signal that killed the payload, if it is known.
func (f *Follower) complete(exit *Exit) {
	if f.payload == nil {
		return
	}
	file := <-f.payload
	f.payload = nil
	if file == nil {
		return
	}
	defer file.Close()
	if signal := killedBy(file); signal != 0 && exit.Signal == 0 {
		exit.kill(signal)
	}
}

func (f *Follower) send(ctx context.Context, events chan<- Event, event Event) {
	select {
	case events <- event:
	case <-ctx.Done():
	}
}
