package systemd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	// returnTimeout bounds the wait for systemd to take its name again, after a
	// restart of the bus or a daemon-reexec.
	returnTimeout = 5 * time.Second

	// narrowRules is how many units are watched by a match rule of their own.
	// dbus-daemon allows 512 rules per connection (dbus-daemon(1),
	// max_match_rules_per_connection), so more units share one rule for all.
	narrowRules = 256
)

// session is one connection to the bus and what waits for signals on it. It is
// never repaired: when the connection breaks, Conn opens another.
type session struct {
	raw *dbus.Conn

	mu       sync.Mutex
	arrived  chan struct{} // closed, and replaced, when systemd took its name
	jobs     map[*waiter]struct{}
	watchers map[dbus.ObjectPath]map[chan<- struct{}]struct{}

	versions sync.Map // systemd's version by arrived; see Conn.KnownVersion

	wideMu sync.Mutex
	wide   bool // the rule for all units was added
}

// openSession connects and has systemd send signals. It waits a little for a
// systemd that is about to return to the bus. If there is none, that is no
// error yet: only calls to systemd itself will fail.
func openSession(ctx context.Context, dial Dialer) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	raw, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	s := &session{
		raw:      raw,
		arrived:  make(chan struct{}),
		jobs:     make(map[*waiter]struct{}),
		watchers: make(map[dbus.ObjectPath]map[chan<- struct{}]struct{}),
	}
	// dispatch does not block. Should the buffer be full nevertheless, godbus
	// loses nothing but the order, and nothing here depends on the order.
	signals := make(chan *dbus.Signal, 64)
	raw.Signal(signals)
	go s.dispatch(signals)
	if err := s.subscribeAll(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return s, nil
}

// subscribeAll asks for the signals that every session needs.
func (s *session) subscribeAll(ctx context.Context) error {
	for _, rule := range []string{
		"type='signal',sender='" + busName + "',member='NameOwnerChanged',arg0='" + systemdName + "'",
		managerRule("JobRemoved"),
		managerRule("UnitNew"),
		managerRule("UnitRemoved"),
	} {
		if err := s.addMatch(ctx, rule); err != nil {
			return err
		}
	}
	err := s.subscribe(ctx)
	if errors.Is(err, errAway) || errors.Is(err, errAbsent) {
		return nil // returned subscribed, or will
	}
	return err
}

func managerRule(member string) string {
	return "type='signal',sender='" + systemdName + "',interface='" + managerIface + "',member='" + member + "'"
}

// subscribe has systemd send signals at all: it does so only while there is at
// least one subscriber.
func (s *session) subscribe(ctx context.Context) error {
	err := s.call(ctx, manager("subscribe to systemd", "", "Subscribe"))
	var reply dbus.Error
	if errors.As(err, &reply) && reply.Name == "org.freedesktop.systemd1.AlreadySubscribed" {
		return nil
	}
	if err != nil {
		return fmt.Errorf("subscribe to systemd: %w", err)
	}
	return nil
}

func (s *session) addMatch(ctx context.Context, rule string) error {
	r := request{dest: busName, path: busPath, method: busName + ".AddMatch", args: []any{rule}}
	if err := s.call(ctx, r); err != nil {
		return fmt.Errorf("add match %s: %w", rule, err)
	}
	return nil
}

// call does r once. If systemd had left the bus, it waits for it to return, so
// that the caller may repeat at once; see again.
func (s *session) call(ctx context.Context, r request, reply ...any) error {
	arrived := s.arrival() // before the call, so as not to miss it
	err := s.send(ctx, r, reply...)
	gone := errors.Is(err, errAway) || errors.Is(err, errLost)
	if !gone || r.dest != systemdName || !s.raw.Connected() {
		return err
	}
	timer := time.NewTimer(returnTimeout)
	defer timer.Stop()
	select {
	case <-arrived:
	case <-s.raw.Context().Done():
	case <-ctx.Done():
	case <-timer.C:
		return fmt.Errorf("%w (%v)", errAbsent, err)
	}
	return err
}

// send does r and sorts out what an error says about the connection.
func (s *session) send(ctx context.Context, r request, reply ...any) error {
	var flags dbus.Flags
	if r.dest == systemdName {
		// systemd's own activation file runs /bin/false: it can only fail, late.
		flags = dbus.FlagNoAutoStart
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	call := s.raw.Object(r.dest, r.path).CallWithContext(ctx, r.method, flags, r.args...)
	err := call.Store(reply...)
	var answer dbus.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &answer):
		return s.refusal(r, answer)
	case ctx.Err() != nil:
		return fmt.Errorf("wait for reply of %s: %w", r.dest, ctx.Err())
	case call.Err != nil && (broken(err) || !s.raw.Connected()):
		s.raw.Close() // a failed write does not do it
		return fmt.Errorf("%w: %w", errLost, err)
	}
	return err
}

// refusal marks the D-Bus errors that mean "nobody there".
func (s *session) refusal(r request, answer dbus.Error) error {
	switch answer.Name {
	case "org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.Disconnected":
		return fmt.Errorf("%w: %w", errLost, answer)
	case "org.freedesktop.DBus.Error.NameHasNoOwner", "org.freedesktop.DBus.Error.ServiceUnknown":
		if r.dest == systemdName {
			return fmt.Errorf("%w: %w", errAway, answer)
		}
	}
	return answer
}

// arrival returns a channel that is closed when systemd takes its name the next
// time and has subscribed us again.
func (s *session) arrival() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.arrived
}

// watch has wake poked when the unit at path changes, and returns what ends it.
// After it, and not before, the state of the unit should be read.
func (s *session) watch(ctx context.Context, path dbus.ObjectPath, wake chan<- struct{}) (stop func(), err error) {
	s.mu.Lock()
	if s.watchers[path] == nil {
		s.watchers[path] = make(map[chan<- struct{}]struct{})
	}
	s.watchers[path][wake] = struct{}{}
	narrow := len(s.watchers) <= narrowRules
	s.mu.Unlock()

	rule := "type='signal',sender='" + systemdName + "',interface='" + propertyIface + "',member='PropertiesChanged',path='" + string(path) + "'"
	if narrow {
		err = s.addMatch(ctx, rule)
	} else {
		err = s.matchAllUnits(ctx)
	}
	stop = func() {
		s.mu.Lock()
		delete(s.watchers[path], wake)
		if len(s.watchers[path]) == 0 {
			delete(s.watchers, path)
		}
		s.mu.Unlock()
		if narrow && err == nil {
			s.raw.BusObject().Go(busName+".RemoveMatch", dbus.FlagNoReplyExpected, nil, rule)
		}
	}
	if err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

// matchAllUnits adds the rule for the changes of all units. It stays.
func (s *session) matchAllUnits(ctx context.Context) error {
	s.wideMu.Lock()
	defer s.wideMu.Unlock()
	if s.wide {
		return nil
	}
	err := s.addMatch(ctx, "type='signal',sender='"+systemdName+"',interface='"+propertyIface+"',member='PropertiesChanged',path_namespace='"+string(systemdPath)+"/unit'")
	s.wide = err == nil
	return err
}
