package systemd

import (
	"context"

	"github.com/godbus/dbus/v5"
)

// dispatch passes signals to the goroutines that wait for them. It returns when the
// connection ends, which closes the channel.
func (s *session) dispatch(signals <-chan *dbus.Signal) {
	for signal := range signals {
		switch signal.Name {
		case busName + ".NameOwnerChanged":
			var name, before, now string
			if dbus.Store(signal.Body, &name, &before, &now) == nil && name == systemdName && now != "" {
				go s.onSystemdReturn()
			}
		case managerIface + ".JobRemoved":
			var id uint32
			var path dbus.ObjectPath
			var unit, result string
			if dbus.Store(signal.Body, &id, &path, &unit, &result) == nil {
				s.jobRemoved(unit, path, result)
			}
		case managerIface + ".UnitNew", managerIface + ".UnitRemoved":
			var unit string
			var path dbus.ObjectPath
			if dbus.Store(signal.Body, &unit, &path) == nil {
				s.changed(path)
			}
		case propertyIface + ".PropertiesChanged":
			s.changed(signal.Path)
		}
	}
}

// onSystemdReturn subscribes again after systemd has taken its bus name. Then it wakes
// all waiters, because the signals that systemd sent in between are lost.
func (s *session) onSystemdReturn() {
	ctx, cancel := context.WithTimeout(s.raw.Context(), callTimeout)
	defer cancel()
	if err := s.subscribe(ctx); err != nil {
		// Without signals this connection is useless. Closing it makes all waiters start
		// again on the next connection.
		s.raw.Close()
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.arrived)
	s.arrived = make(chan struct{})
	for path := range s.watchers {
		s.wake(path)
	}
}

// changed wakes the watchers of the unit at path.
func (s *session) changed(path dbus.ObjectPath) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wake(path)
}

// wake wakes the watchers of the unit at path. The caller holds mu. A watcher that has a
// wake-up pending needs no second one.
func (s *session) wake(path dbus.ObjectPath) {
	for wake := range s.watchers[path] {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}
