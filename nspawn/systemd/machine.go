package systemd

import (
	"context"
	"slices"

	"github.com/godbus/dbus/v5"
)

const (
	machineName  = "org.freedesktop.machine1"
	machinePath  = dbus.ObjectPath("/org/freedesktop/machine1")
	machineIface = "org.freedesktop.machine1.Machine"
	imageIface   = "org.freedesktop.machine1.Image"
)

// machined returns a request to the manager object of systemd-machined.
func machined(op, name, method string, args ...any) request {
	return request{op: op, name: name, dest: machineName, path: machinePath, method: machineName + ".Manager." + method, args: args}
}

// Machine is a machine that is registered with systemd-machined.
type Machine struct {
	Leader uint32 // PID of the machine's init process
	Unit   string // the unit it runs in
}

// Machine looks up a registered machine. The error is [ErrNotFound] if there is no
// machine of this name.
func (c *Conn) Machine(ctx context.Context, name string) (Machine, error) {
	p, err := c.lookUp(ctx, machined("get machine", name, "GetMachine", name), machineIface)
	if err != nil {
		return Machine{}, err
	}
	return Machine{Leader: get[uint32](p, "Leader"), Unit: get[string](p, "Unit")}, nil
}

// Image is an image in one of the directories of systemd-machined.
type Image struct {
	Path     string
	Type     string // "directory", "subvolume", "raw" or "block"
	ReadOnly bool
}

// Image looks up an image of systemd-machined. The error is [ErrNotFound] if there is no
// image of this name.
func (c *Conn) Image(ctx context.Context, name string) (Image, error) {
	p, err := c.lookUp(ctx, machined("get image", name, "GetImage", name), imageIface)
	if err != nil {
		return Image{}, err
	}
	return Image{Path: get[string](p, "Path"), Type: get[string](p, "Type"), ReadOnly: get[bool](p, "ReadOnly")}, nil
}

// lookUp executes a request that returns an object path, and returns the object's
// properties.
func (c *Conn) lookUp(ctx context.Context, r request, iface string) (properties, error) {
	var path dbus.ObjectPath
	if err := c.call(ctx, r, &path); err != nil {
		return nil, err
	}
	var p properties
	err := c.call(ctx, getAll(r.op, r.name, r.dest, path, iface), &p)
	return p, err
}

// ListMachines returns the sorted names of the machines that are registered with
// systemd-machined. ".host", if present, is the host itself.
func (c *Conn) ListMachines(ctx context.Context) ([]string, error) {
	var machines []struct {
		Name, Class, Service string
		Path                 dbus.ObjectPath
	}
	if err := c.call(ctx, machined("list machines", "", "ListMachines"), &machines); err != nil {
		return nil, err
	}
	var names []string
	for _, m := range machines {
		names = append(names, m.Name)
	}
	slices.Sort(names)
	return names, nil
}
