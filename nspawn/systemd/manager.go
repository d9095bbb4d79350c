package systemd

import (
	"context"
	"errors"
	"slices"

	"github.com/godbus/dbus/v5"
)

// Version returns systemd's version as its build reports it, such as "252.39-1~deb12u1".
func (c *Conn) Version(ctx context.Context) (string, error) {
	return c.managerProperty(ctx, "Version")
}

// KnownVersion returns the same as Version, but asks systemd only once while it keeps its
// name on the bus: another version would have to take the name again.
func (c *Conn) KnownVersion(ctx context.Context) (string, error) {
	s, err := c.session(ctx)
	if err != nil {
		return "", err
	}
	arrived := s.arrival()
	if version, ok := s.versions.Load(arrived); ok {
		return version.(string), nil
	}
	version, err := c.Version(ctx)
	if err != nil {
		return "", err
	}
	s.versions.Clear()
	s.versions.Store(arrived, version)
	return version, nil
}

// Features returns the build features of systemd, such as "+PAM +AUDIT -SELINUX".
func (c *Conn) Features(ctx context.Context) (string, error) {
	return c.managerProperty(ctx, "Features")
}

func (c *Conn) managerProperty(ctx context.Context, name string) (string, error) {
	r := request{
		op: "get property of systemd", name: name,
		dest: systemdName, path: systemdPath,
		method: propertyIface + ".Get", args: []any{managerIface, name},
	}
	var value dbus.Variant
	if err := c.call(ctx, r, &value); err != nil {
		return "", err
	}
	text, _ := value.Value().(string)
	return text, nil
}

// Available reports whether a bus name, such as "org.freedesktop.machine1", has an owner,
// or whether a call would start one.
func (c *Conn) Available(ctx context.Context, name string) (bool, error) {
	for _, method := range []string{"ListNames", "ListActivatableNames"} {
		r := request{op: "look up bus name", name: name, dest: busName, path: busPath, method: busName + "." + method}
		var names []string
		if err := c.call(ctx, r, &names); err != nil {
			return false, err
		}
		if slices.Contains(names, name) {
			return true, nil
		}
	}
	return false, nil
}

// Runs reports whether a service, such as "systemd-networkd.service", runs or is starting.
// Available does not tell: D-Bus knows the names of services that are disabled.
func (c *Conn) Runs(ctx context.Context, service string) (bool, error) {
	value, err := c.unitProperty(ctx, service, "org.freedesktop.systemd1.Unit", "ActiveState")
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	state, _ := value.Value().(string)
	return slices.Contains([]string{"active", "activating", "reloading"}, state), err
}
