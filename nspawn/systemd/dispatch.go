package systemd

import (
	"context"

	"github.com/godbus/dbus/v5"
)

// dispatch hands signals to those who wait for them until the connection ends,
// which closes the channel.
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

// onSystemdReturn subscribes again to a systemd that has just taken its name and lets
// everybody know: its signals since it left are lost.
func (s *session) onSystemdReturn() {
	ctx, cancel := context.WithTimeout(s.raw.Context(), callTimeout)
	defer cancel()
	if err := s.subscribe(ctx); err != nil {
		// Without signals this connection is of no use. With the next one
		// everybody starts anew.
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

// wake must be called with mu held. A watcher that was woken already and did not
// look yet need not be woken twice.
func (s *session) wake(path dbus.ObjectPath) {
	for wake := range s.watchers[path] {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}
