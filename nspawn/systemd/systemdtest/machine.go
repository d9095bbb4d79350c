package systemdtest

import (
	"maps"
	"slices"
	"strings"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

const (
	machinedName  = "org.freedesktop.machine1"
	machinePath   = dbus.ObjectPath("/org/freedesktop/machine1")
	machinedIface = "org.freedesktop.machine1.Manager"
)

// machined implements the methods of org.freedesktop.machine1.Manager.
type machined struct{ fake *Fake }

type listedMachine struct {
	Name, Class, Service string
	Path                 dbus.ObjectPath
}

func objectPath(kind, name string) dbus.ObjectPath {
	return machinePath + dbus.ObjectPath("/"+kind+"/"+sd.PathBusEscape(name))
}

func (m machined) GetMachine(name string) (dbus.ObjectPath, *dbus.Error) {
	m.fake.mu.Lock()
	defer m.fake.mu.Unlock()
	if _, ok := m.fake.machines[name]; !ok {
		return "", refuse("org.freedesktop.machine1.NoSuchMachine", "No machine '%s' known", name)
	}
	return objectPath("machine", name), nil
}

func (m machined) GetImage(name string) (dbus.ObjectPath, *dbus.Error) {
	m.fake.mu.Lock()
	defer m.fake.mu.Unlock()
	if _, ok := m.fake.images[name]; !ok {
		return "", refuse("org.freedesktop.machine1.NoSuchImage", "No image '%s' known", name)
	}
	return objectPath("image", name), nil
}

func (m machined) ListMachines() ([]listedMachine, *dbus.Error) {
	m.fake.mu.Lock()
	defer m.fake.mu.Unlock()
	var listed []listedMachine
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(m.fake.machines))) {
		listed = append(listed, listedMachine{name, "container", "systemd-nspawn", objectPath("machine", name)})
	}
	return listed, nil
}

// machineProperties implements the objects of machines and images.
type machineProperties struct{ fake *Fake }

func (p machineProperties) GetAll(msg dbus.Message, iface string) (map[string]dbus.Variant, *dbus.Error) {
	f := p.fake
	f.mu.Lock()
	defer f.mu.Unlock()
	path, _ := msg.Headers[dbus.FieldPath].Value().(dbus.ObjectPath)
	for name, m := range f.machines {
		if path == objectPath("machine", name) && strings.HasSuffix(iface, ".Machine") {
			return variants(map[string]any{"Name": name, "Leader": m.Leader, "Unit": m.Unit, "Class": "container"}), nil
		}
	}
	for name, i := range f.images {
		if path == objectPath("image", name) && strings.HasSuffix(iface, ".Image") {
			return variants(map[string]any{"Name": name, "Path": i.Path, "Type": i.Type, "ReadOnly": i.ReadOnly}), nil
		}
	}
	return nil, refuse("org.freedesktop.DBus.Error.UnknownObject", "Unknown object '%s'.", path)
}

func variants(values map[string]any) map[string]dbus.Variant {
	out := make(map[string]dbus.Variant, len(values))
	for name, value := range values {
		out[name] = dbus.MakeVariant(value)
	}
	return out
}
