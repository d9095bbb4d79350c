package job

import (
	"cmp"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/machine"
)

type deviceOptions struct {
	Devices []Device `codec:"devices"`
}

// Device is a device of the client that a task sees, as in docker.
type Device struct {
	HostPath          string `codec:"host_path"`
	ContainerPath     string `codec:"container_path"`
	CgroupPermissions string `codec:"cgroup_permissions"`
}

var deviceSchema = schema.Options{
	"devices": hclspec.NewBlockList("devices", hclspec.NewObject(schema.Options{
		"host_path":          schema.RequiredAttr("host_path", "string"),
		"container_path":     schema.Attr("container_path", "string"),
		"cgroup_permissions": schema.WithDefault("cgroup_permissions", "string", allAccess),
	})),
}

// allAccess is permission to read, to write, and to create nodes of a device.
const allAccess = "rwm"

var deviceAccess = regexp.MustCompile(`^[rwm]{1,3}$`)

func (c TaskConfig) validateDevices() error {
	var found schema.Mistakes
	for i, device := range c.Devices {
		option := schema.At("devices", i)
		found.Add(schema.NotEmpty(option+".host_path", device.HostPath), schema.Absolute(option+".host_path", device.HostPath),
			schema.Absolute(option+".container_path", device.ContainerPath),
			schema.Matches(option+".cgroup_permissions", device.CgroupPermissions, deviceAccess, "of r, w and m"))
	}
	return found.Err()
}

// applyDevices adds the devices that the job names, if the operator allows them, and those
// of Nomad's device plugins, which the operator has configured.
func (c TaskConfig) applyDevices(in Input, spec *machine.Spec) error {
	var found schema.Mistakes
	seen := map[string]bool{}
	add := func(option, source, destination, access string) {
		device := machine.Device{Source: filepath.Clean(source), Destination: filepath.Clean(cmp.Or(destination, source)), Access: cmp.Or(access, allAccess)}
		found.Unless(below("/dev", device.Source), "%s: %s is not below /dev", option, source)
		found.Unless(!seen[device.Destination], "%s: %s is there already", option, device.Destination)
		seen[device.Destination] = true
		spec.Devices = append(spec.Devices, device)
	}
	for i, device := range c.Devices {
		add(schema.At("devices", i), device.HostPath, device.ContainerPath, device.CgroupPermissions)
		found.Add(schema.Prefixed(schema.At("devices", i)+": ", in.Policy.Device(filepath.Clean(device.HostPath))))
	}
	for _, device := range pluginDevices(in.Task.Devices) {
		add("device", device.HostPath, device.TaskPath, device.Permissions)
	}
	return found.Err()
}

// pluginDevices returns the devices of Nomad's device plugins, each once. A plugin gives some
// with each device that a task has of it, such as the one that controls all of them.
func pluginDevices(devices []*drivers.DeviceConfig) (list []drivers.DeviceConfig) {
	for _, device := range devices {
		same := slices.IndexFunc(list, func(other drivers.DeviceConfig) bool {
			return other.HostPath == device.HostPath && other.TaskPath == device.TaskPath
		})
		if same < 0 {
			list = append(list, *device)
			continue
		}
		access := func(permissions string) string { return cmp.Or(permissions, allAccess) }
		other := access(list[same].Permissions)
		for _, right := range access(device.Permissions) {
			if !strings.ContainsRune(other, right) {
				other += string(right)
			}
		}
		list[same].Permissions = other
	}
	return list
}

func below(dir, name string) bool {
	rel, err := filepath.Rel(dir, name)
	return err == nil && rel != "." && filepath.IsLocal(rel)
}
