package nspawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"

	"nomad-driver-nspawn/nspawn/cgroup"
	"nomad-driver-nspawn/nspawn/gate"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/process"
	"nomad-driver-nspawn/nspawn/programs"
	"nomad-driver-nspawn/nspawn/stage"
	"nomad-driver-nspawn/nspawn/systemd"
)

// Streams receive the payload's output. The zero value selects the host's journal.
type Streams struct{ Stdout, Stderr *os.File }

// startTimeout limits a start. nspawn alone needs 0.1 s; a host that starts many machines
// at once needs longer.
const startTimeout = 90 * time.Second

// Start starts the machine and returns when its payload has begun. It first removes what
// an earlier start of the same name left. It runs the steps when nspawn has set up the
// machine, before the payload begins. It calls notice with the reason if it takes longer
// than usual.
//
// After an error nothing is left, and the payload has not begun. The error is an
// *inside.Failure if the image does not have the command, and a *StartError if nspawn has
// failed.
//
// Start opens the streams as late as possible, and closes them; systemd keeps its own
// copies. A log collector stops reading when the last writer closes. If the plugin opened
// the streams early and died during the start, the collector would stop before the task
// ever wrote.
func (m *Manager) Start(ctx context.Context, s machine.Spec, notice func(string), open func() (Streams, error), steps ...Step) (follower *Follower, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	lock, err := m.locks.Lock(s.Machine)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	var (
		found              programs.Programs
		stage              *stage.Stage
		foundErr, stageErr error
		looking            sync.WaitGroup
	)
	looking.Go(func() { found, foundErr = programs.Find(ctx, m.bus, m.dirs.Pins()) })
	looking.Go(func() { stage, stageErr = m.parts.NewStage() })
	err = m.clear(ctx, s.Machine)
	looking.Wait()
	if stage != nil {
		defer stage.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("clear what an earlier start left: %w", err)
	}
	defer func() {
		if err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
			defer cancel()
			err = errors.Join(err, m.remove(undo, s.Machine))
		}
	}()
	if err := errors.Join(foundErr, stageErr); err != nil {
		return nil, err
	}
	s, host, err := m.parts.Prepare(ctx, s, found, stage, notice)
	if err != nil {
		return nil, err
	}
	socket, err := listenNotify(m.dirs.Notify(s.Machine))
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", s.Machine, err)
	}
	follower = m.follow(s.Machine, s.Mode, Begin{Instructions: s.Instructions(), Steps: steps, Sysctls: s.Sysctls}, socket)
	if err := m.launch(ctx, s, host, open, follower); err != nil {
		follower.Close()
		return nil, fmt.Errorf("start machine %s: %w", s.Machine, err)
	}
	return follower, nil
}

// launch starts the unit and lets its payload begin.
func (m *Manager) launch(ctx context.Context, s machine.Spec, host machine.Host, open func() (Streams, error), follower *Follower) error {
	g, err := gate.Listen(m.dirs.Gate(s.Machine))
	if err != nil {
		return err
	}
	defer g.Close()
	if err := m.startUnit(ctx, s, host, open); err != nil {
		return err
	}
	w, err := m.awaitPayload(ctx, s.Machine, s.Mode, g)
	if err != nil {
		return err
	}
	follower.hold(w.payload)
	follower.fresh = w.leader.Parent
	return m.begin(ctx, s.Machine, w, follower.begin)
}

func (m *Manager) startUnit(ctx context.Context, s machine.Spec, host machine.Host, open func() (Streams, error)) error {
	streams, err := open()
	if err != nil {
		return err
	}
	defer streams.Close()
	s.LogToJournal = s.LogToJournal || streams.Stdout == nil
	props := machine.Properties(s, host)
	if !s.LogToJournal {
		props = append(props,
			systemd.NewProperty("StandardOutputFileDescriptor", dbus.UnixFD(streams.Stdout.Fd())),
			systemd.NewProperty("StandardErrorFileDescriptor", dbus.UnixFD(streams.Stderr.Fd())),
		)
	}
	if err := m.bus.StartTransientUnit(ctx, machine.UnitName(s.Machine), props); err != nil {
		return m.explainStart(ctx, s.Machine, err)
	}
	return cgroup.Limit(s.Machine)
}

// explainStart returns the error of a unit that could not be started. nspawn may have
// ended before systemd was finished with the start.
func (m *Manager) explainStart(ctx context.Context, name string, err error) error {
	unit, lookErr := m.unit(ctx, name)
	if lookErr != nil {
		return err
	}
	if exit, ok := ended(unit); ok && exit.Code == 1 {
		return &StartError{Exit: exit, Message: lastMessage(ctx, name, unit)}
	}
	return err
}

// awaitPayload returns the payload when nspawn has set up the machine and the payload
// waits at the gate. If nspawn ends before that, it has failed.
//
// awaitPayload waits for nspawn's process and not for its unit. Reading the state of a
// unit takes systemd 4 ms, CPU time that nspawn needs.
func (m *Manager) awaitPayload(ctx context.Context, name string, mode machine.Mode, g *gate.Gate) (waiting, error) {
	watch, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-m.endOf(watch, name):
			cancel(m.awaitFailure(watch, name))
		case <-watch.Done():
		}
	}()
	w, err := m.await(watch, name, mode, g)
	var failed *StartError
	if err != nil && errors.As(context.Cause(watch), &failed) {
		return w, failed
	}
	return w, err
}

// endOf returns a channel that is closed when the machine's nspawn has ended, or when its
// end cannot be observed.
func (m *Manager) endOf(ctx context.Context, name string) <-chan struct{} {
	end := make(chan struct{})
	go func() {
		defer close(end)
		if nspawn, err := m.bus.MainPID(ctx, machine.UnitName(name)); err == nil {
			process.AwaitEnd(ctx, nspawn, machine.UnitName(name))
		}
	}()
	return end
}

// awaitFailure returns how the machine has ended, from the state of its unit. It waits
// until systemd knows of the end, and for a bus that is away.
func (m *Manager) awaitFailure(ctx context.Context, name string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for unit := range m.bus.WatchUnit(ctx, machine.UnitName(name)) {
		if exit, isEnd := ended(unit); isEnd || gone(unit) {
			return &StartError{Exit: exit, Message: lastMessage(ctx, name, unit)}
		}
	}
	return fmt.Errorf("wait until it is up: %w", ctx.Err())
}

// StartError means that systemd-nspawn could not set up the machine.
type StartError struct {
	Exit    Exit
	Message string // nspawn's own message, if the journal has it
}

func (e *StartError) Error() string {
	how := fmt.Sprintf("systemd-nspawn ended with status %d", e.Exit.Code)
	if e.Exit.Signal != 0 {
		how = fmt.Sprintf("systemd-nspawn was killed by signal %d", e.Exit.Signal)
	}
	if e.Message == "" {
		return how + " before the machine was up; `journalctl -t systemd-nspawn` may say why"
	}
	return how + ": " + e.Message
}

// Close closes both streams.
func (s Streams) Close() error {
	if s.Stdout == nil {
		return nil
	}
	return errors.Join(s.Stdout.Close(), s.Stderr.Close())
}
