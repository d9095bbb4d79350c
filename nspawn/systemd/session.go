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
	// returnTimeout limits the wait for systemd to take its bus name again after a
	// restart of the bus or a daemon-reexec.
	returnTimeout = 5 * time.Second

	// narrowRules is the number of units that are watched with a match rule of their own.
	// dbus-daemon allows 512 rules per connection (dbus-daemon(1),
	// max_match_rules_per_connection), so further units share one rule for all units.
	narrowRules = 256
)

// session is one connection to the bus, with the goroutines that wait for signals on it.
// A broken session is never repaired; Conn opens a new one.
type session struct {
	raw *dbus.Conn

	mu       sync.Mutex
	arrived  chan struct{} // closed and replaced whenever systemd has taken its bus name
	jobs     map[*waiter]struct{}
	watchers map[dbus.ObjectPath]map[chan<- struct{}]struct{}

	versions sync.Map // systemd's version, with arrived as the key; see Conn.KnownVersion

	wideMu sync.Mutex
	wide   bool // the rule for all units has been added
}

// openSession connects to the bus and subscribes to systemd's signals. It waits a short
// time for a systemd that is about to return to the bus. It is not an error if there is
// none: only calls to systemd itself will fail then.
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
	// dispatch does not block. If the buffer is full nevertheless, godbus only changes
	// the order of signals, and nothing here depends on the order.
	signals := make(chan *dbus.Signal, 64)
	raw.Signal(signals)
	go s.dispatch(signals)
	if err := s.subscribeAll(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return s, nil
}

// subscribeAll subscribes to the signals that every session needs.
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
		return nil // onSystemdReturn has subscribed, or will
	}
	return err
}

func managerRule(member string) string {
	return "type='signal',sender='" + systemdName + "',interface='" + managerIface + "',member='" + member + "'"
}

// subscribe makes systemd send signals. systemd sends none unless it has a subscriber.
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

// call executes a request once. If systemd is not on the bus, call waits for it to
// return, so that the caller can try again at once (see retry).
func (s *session) call(ctx context.Context, r request, reply ...any) error {
	arrived := s.arrival() // before the call, so that no arrival is missed
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

// send executes a request, and determines what an error means for the connection.
func (s *session) send(ctx context.Context, r request, reply ...any) error {
	var flags dbus.Flags
	if r.dest == systemdName {
		// systemd's activation file runs /bin/false, which can only fail, and late.
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
	case call.Err != nil && (isConnectionError(err) || !s.raw.Connected()):
		s.raw.Close() // a failed write does not close it
		return fmt.Errorf("%w: %w", errLost, err)
	}
	return err
}

// refusal wraps the D-Bus errors that mean that there is no receiver.
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

// arrival returns a channel that is closed the next time systemd has taken its bus name
// and we have subscribed again.
func (s *session) arrival() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.arrived
}

// watch arranges that wake receives a value when the unit at path changes. stop ends
// this. To miss no change, read the unit's state after watch has returned.
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

// matchAllUnits adds the rule for changes of all units, which is never removed.
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
